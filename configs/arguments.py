"""The NAME of `--config=FILE:NAME`, the same in every config."""

from collections.abc import Iterable


def check(file: str, name: str | None, known: Iterable[str]) -> None:
    """Raises ValueError for a name that the config `file` does not know, with those it knows."""
    if name and name not in (known := list(known)):
        raise ValueError(f"{file} knows no {name!r}; it knows {', '.join(known)}.")
