"""How costs grow from point to point: records, a table and a figure of several points."""

import dataclasses
from collections.abc import Sequence

import rich.table

from kvpacket_jax.measure.cost import ALONE, Cost
from kvpacket_jax.measure.point import PointCosts
from kvpacket_jax.report import costs, figures
from kvpacket_jax.runtime.format import milliseconds
from kvpacket_jax.runtime.format import table as empty_table


def records(points: Sequence[PointCosts]) -> list[dict]:
    """JSON-able rows of all points, each with its documents; the first of each with decoding."""
    rows = []
    for point in points:
        about = {
            "documents": lengths(point),
            "batch": point.batch,
            "paged_kernel": point.model.config.paged_kernel,
        }
        dicts = [about | dataclasses.asdict(row) for row in point.rows]
        dicts[0]["decoding"] = point.decoding._asdict()
        if point.beside:
            pairs = [pair._asdict() for pair in point.beside.pairs]
            dicts[0]["beside"] = {"peer": point.beside.peer, "pairs": pairs}
        rows += dicts
    return rows


def lengths(point: PointCosts) -> list[int]:
    """Tokens of each document of a point."""
    return [len(ids) for ids in point.request.documents]


def table(points: Sequence[PointCosts]) -> rich.table.Table:
    """TTFT of every method at every point, a line a point; then a later token's time."""
    methods = list(dict.fromkeys(row.method for point in points for row in point.rows))
    headings = (f"{name}, ms" if name == ALONE else f"{name} (÷ alone)" for name in methods)
    shown = empty_table(("packets",), "tokens", "at once", *headings, "next token, ms (÷ floor)")
    for point in points:
        later, by_method = point.decoding, {row.method: row for row in point.rows}
        shown.add_row(
            str(len(point.request.documents)),
            f"{sum(lengths(point)):,}",
            str(point.batch),
            *(_ttft(by_method[name]) if name in by_method else "-" for name in methods),
            f"{milliseconds(later.token_s)} ({later.token_s / later.floor_s:.2f})",
        )
    return shown


def _ttft(row: Cost) -> str:
    ratio = "" if row.to_alone in (None, 1) else f" ({row.to_alone:.2f})"
    return milliseconds(row.ttft_s) + ratio


def _size(point: PointCosts) -> tuple[int, int]:
    return point.batch, len(lengths(point))


def figure(points: Sequence[PointCosts]) -> str:
    """TTFT by cached tokens, a line a method and one for the least the machine takes: SVG.

    Of points with as many tokens the one with the fewest documents is drawn, of batches the
    smallest.
    """
    by_tokens: dict[int, PointCosts] = {}
    for point in points:
        tokens = sum(lengths(point))
        known = by_tokens.get(tokens)
        if known is None or _size(point) < _size(known):
            by_tokens[tokens] = point
    series: dict[str, list[tuple[float, float]]] = {}
    for tokens, point in sorted(by_tokens.items()):
        for row in point.rows:
            series.setdefault(row.method, []).append((tokens, row.ttft_s))
        series.setdefault("floor", []).append((tokens, point.rows[0].floor_s))
    first = points[0]
    note = (
        f"{first.model.name}, a query of {len(first.request.query)} tokens. "
        f"{costs.machine_line(first.machine)} floor: the least that the query alone takes there."
    )
    return figures.by_tokens(series, note)
