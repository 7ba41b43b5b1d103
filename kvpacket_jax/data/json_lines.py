"""Files of JSON lines that people write: each is an object, and what is wrong is said by line.

All such files are read here, with one set of checks: of documents, of questions, of examples.
"""

import gzip
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

MAX_LINE = 1 << 28  # bytes, unpacked; a novel has a million


def read(
    path: pathlib.Path, required: tuple[str, ...], make: Callable[[int, dict], T]
) -> Iterator[tuple[int, T | ValueError]]:
    """The number of each line, from 1, and what `make(number, record)` returns, or what is wrong.

    Lines end with "\\n" alone, for texts may hold the other ends of line; blank ones are passed
    over. `make` is called with records that have all `required` keys, an "id" (if there is one)
    that `check_id` takes, and texts that UTF-8 can hold; it may raise ValueError. A path that ends
    in .gz is of a compressed file.

    Raises FileNotFoundError, and ValueError for a damaged compressed file.
    """
    check_exists(path)
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            yield number, make(number, _record(line, required))
        except ValueError as error:  # of decoding and of JSON too
            yield number, error


def refuse(path: pathlib.Path, bad: list[str], remedy: str = "", items: str = "lines") -> None:
    """Raises ValueError with what is wrong with a file's `items`; the first twenty are shown.

    Args:
      remedy: what the lines should be, or what to do, a sentence.
    """
    if bad:
        shown = "\n".join(bad[:20]) + (f"\n… and {len(bad) - 20} more" if len(bad) > 20 else "")
        remedy = f"\n{remedy}" * bool(remedy)
        raise ValueError(f"{path} has {items} that cannot be used:\n{shown}{remedy}")


def check_exists(path: pathlib.Path) -> None:
    """Raises FileNotFoundError where there is no such file."""
    if not path.is_file():
        is_folder = f"{path} is a folder, not a file."
        raise FileNotFoundError(is_folder if path.is_dir() else f"There is no file {path}.")


def check_text(name: str, value: Any) -> None:
    """Raises ValueError for what is not a text, is empty or blank, or has half a surrogate pair."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text that is not empty, found {value!r:.60}")
    _check_unicode(name, value)


def check_id(value: Any) -> str:
    """An id as a text; a whole number is taken as its text.

    Raises ValueError for what is no text, is empty, or begins or ends with a blank: ids are given
    in flags too, which drop these.
    """
    if type(value) is int:
        value = str(value)
    check_text("id", value)
    if value != value.strip():
        raise ValueError(f"the id {value!r:.60} begins or ends with a blank")
    return value


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        number = 0
        try:
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise ValueError(f"{path}, line {number}: over {MAX_LINE:,} bytes long.")
                yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{path} is damaged or cut short after line {number}: {error}"
            ) from error


def _record(line: bytes, required: tuple[str, ...]) -> dict:
    try:
        record = json.loads(line.removesuffix(b"\n").decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON at character {error.pos + 1}: {error.msg}") from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"it is not an object but {type(record).__name__}")
    missing = [key for key in required if key not in record]
    if missing:
        present = ", ".join(record) or "nothing"
        raise ValueError(f"{' and '.join(missing)} missing; it has {present}")
    for key in required:
        _check_unicode(key, record[key])
    if "id" in record:
        record["id"] = check_id(record["id"])
    return record


def _check_unicode(name: str, value: Any) -> None:
    """Raises ValueError for half a surrogate pair in any text of a JSON value."""
    ahead = [value]
    while ahead:
        value = ahead.pop()
        if isinstance(value, dict):
            ahead += [*value, *value.values()]
        elif isinstance(value, list):
            ahead += value
        elif isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{name} has half a surrogate pair, {value[error.start]!r}, as its character "
                    f"{error.start + 1}: {error.reason}"
                ) from error
