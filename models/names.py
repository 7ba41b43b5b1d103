"""Hints for misspelled names."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> str:
    """A hint, " (did you mean a or b?)", with up to `count` known names; "" if none is close.

    `cutoff` is the least similarity, from 0 to 1.
    """
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
