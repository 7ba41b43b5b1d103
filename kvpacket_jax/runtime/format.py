"""How numbers and tables are shown, the same in every program."""

from collections.abc import Sequence

import rich.box
import rich.table


def si(value: float | None) -> str:
    """A count to three digits with its size's prefix: 1,160,000,000,000 is "1.16 T", None "-"."""
    if value is None:
        return "-"
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def number(value: float | None, digits: int = 2) -> str:
    """To so many digits, "-" for one that is not known."""
    return "-" if value is None else f"{value:z.{digits}f}"


def milliseconds(seconds: float | None) -> str:
    """Whole milliseconds, two digits of a short time, "-" for one that is not known."""
    if seconds is None:
        return "-"
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.0995 else f"{1e3 * seconds:.2g}"


def table(first: Sequence[str], *numbers: str) -> rich.table.Table:
    """An empty table: columns of text, which fold where there is no room, then of numbers."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for name in first:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
