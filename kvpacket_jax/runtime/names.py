"""Names that people give: which are known, and which one was likely meant."""

import difflib
from collections.abc import Collection, Iterable

from models.names import did_you_mean


def by_similarity(name: str, known: Iterable[str], count: int) -> list[str]:
    """The `count` known names that are most similar to a name, the most similar first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.0)


def check(name: str, known: Collection[str], kind: str) -> None:
    """Raises ValueError for a name that is not known, listing those that are.

    Args:
      kind: what it names, as "template".
    """
    if name not in known:
        raise ValueError(
            f"There is no {kind} {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}."
        )
