"""JSON that other programs wrote: one reader, and values of the expected kind."""

import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from models.foreign import regular

# Several times the largest in use; parsed, a file may take twenty times its size.
CONFIG_BYTES = 2**23
TOKENIZER_BYTES = 40 * 2**20
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_object(path: pathlib.Path, limit: int = CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in the file `path`.

    Raises ValueError, naming the file, for what is not JSON or not an object; FileNotFoundError.
    """
    text = regular.read_text(path, limit)
    with regular.one_line(path, "is not JSON: fetch it again"):
        value = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half of a pair is no text
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, found {brief(value)}: fetch it again.")
    return value


def read_if_there(path: pathlib.Path, limit: int = CONFIG_BYTES) -> dict[str, Any]:
    """As `read_object`; {} where there is no file."""
    return read_object(path, limit) if path.exists() else {}


def brief(value: Any) -> str:
    """A value as JSON shows it, cut to what fits a line."""
    try:
        text = json.dumps(value, default=repr)
    except (RecursionError, ValueError):
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:60] + " …"


def names(found: Iterable[str], most: int = 5) -> str:
    """The first names of a foreign file, as they may stand in a line."""
    found = list(found)
    shown = [(n if n.isprintable() else ascii(n))[:100] for n in found[:most]]
    return ", ".join(shown) + (f" and {len(found) - most} more" if len(found) > most else "")


def integer(source: Any, key: str, value: Any, least: int, most: int) -> int:
    """`value` if it is an integer in the range; a ValueError that names file and key if not."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(
            f"{source}: {key!r} must be an integer from {least:,} to {most:,}, found "
            f"{brief(value)}."
        )
    return value


def number(source: Any, key: str, value: Any, most: float = 1e30) -> float:
    """`value` if it is a finite number above 0, and at most `most`; a ValueError if not."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    # An integer that no float has would overflow later.
    if not good or not 0 < value <= (min(most, 2**53) if isinstance(value, int) else most):
        raise ValueError(
            f"{source}: {key!r} must be a number above 0, at most {most:g}, found {brief(value)}."
        )
    return value


def flag(source: Any, key: str, value: Any) -> bool:
    """`value` if it is true or false; a ValueError if not."""
    if not isinstance(value, bool):
        raise ValueError(f"{source}: {key!r} must be true or false, found {brief(value)}.")
    return value


def text(source: Any, key: str, value: Any) -> str:
    """`value` if it is a string; a ValueError if not."""
    if not isinstance(value, str):
        raise ValueError(f"{source}: {key!r} must be a string, found {brief(value)}.")
    return value
