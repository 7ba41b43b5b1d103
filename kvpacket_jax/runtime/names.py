"""Names and texts that people give: which are known or likely meant, and which are no text."""

import contextlib
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


def check_utf8(text: str, what: str) -> None:
    """Raises ValueError for a text that UTF-8 has no bytes for, as of a terminal in Latin-1.

    Args:
      what: begins the message, as "The question".
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = text[error.start : error.end].encode("utf-8", "surrogatepass")
        with contextlib.suppress(UnicodeEncodeError):  # the byte as it was given
            wrong = text[error.start : error.end].encode(errors="surrogateescape")
        after = text[: error.start][-20:]
        raise ValueError(
            f"{what} is not UTF-8 text: byte {wrong.hex(' ')} after {after!r}. Is the terminal or "
            "the file in another encoding?"
        ) from error
