"""Files of JSON lines that people write: each is an object, and what is wrong is said by line."""

import gzip
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def read(
    path: pathlib.Path, required: tuple[str, ...], make: Callable[[int, dict], T]
) -> Iterator[tuple[int, T | ValueError]]:
    """The number of each line, from 1, and what `make(number, record)` returns, or what is wrong.

    Lines end with "\\n" alone, for texts may hold the other ends of line; blank ones are passed
    over. `make` is called with records that have all `required` keys, and may raise ValueError. A
    path that ends in .gz is of a compressed file.

    Raises FileNotFoundError.
    """
    check_exists(path)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, make(number, _record(line, required))
            except ValueError as error:  # of decoding and of JSON too
                yield number, error


def refuse(path: pathlib.Path, bad: list[str]) -> None:
    """Raises ValueError with what is wrong with a file's lines; the first twenty are shown."""
    if bad:
        shown = "\n".join(bad[:20]) + (f"\n… and {len(bad) - 20} more" if len(bad) > 20 else "")
        raise ValueError(f"{path} has lines that cannot be used:\n{shown}")


def check_exists(path: pathlib.Path) -> None:
    """Raises FileNotFoundError where there is no such file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")


def _record(line: bytes, required: tuple[str, ...]) -> dict:
    try:
        record = json.loads(line.removesuffix(b"\n").decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON at character {error.pos + 1}: {error.msg}") from error
    if not isinstance(record, dict):
        raise ValueError(f"it is not an object but {type(record).__name__}")
    missing = [key for key in required if key not in record]
    if missing:
        present = ", ".join(record) or "nothing"
        raise ValueError(f"{' and '.join(missing)} missing; it has {present}")
    return record
