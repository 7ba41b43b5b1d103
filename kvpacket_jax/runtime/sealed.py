"""Seals: SHA-256 of what the project writes and reads back, compared before it is used.

A JSON object has the digest of its other fields beside them. A folder of orbax's has a file with
the digest of each of its files, written last, which is checked before orbax parses any of them.
"""

import json
from collections.abc import Iterator

from etils import epath

from models.disk.files import is_local, sync, write_whole
from models.foreign import digests
from models.identity import digest as json_digest

FILE = "sha256.json"  # {path in the folder: digest}
MARK = {"sealed": True}  # in a folder's custom metadata: without its seal it is incomplete
METADATA = "_CHECKPOINT_METADATA"  # a file that orbax puts into every checkpoint
KEY = "sha256"  # of the digest in a JSON object
WRONG_JSON = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


class Damaged(ValueError):
    """A file that is not as it was written."""


# ---- JSON


def stamped(record: dict) -> dict:
    """A JSON-able record with the digest of its fields beside them."""
    return record | {KEY: json_digest(json.loads(json.dumps(record)))}


def unstamped(record: dict) -> dict:
    """A record as it was given to `stamped`; Damaged where it is not, or has no digest.

    One of an earlier version, which had no digests, is refused too: a record whose digest's name is
    damaged looks the same.
    """
    if not isinstance(record, dict):
        raise Damaged(f"it is not an object but {type(record).__name__}")
    fields = {name: value for name, value in record.items() if name != KEY}
    if record.get(KEY) != json_digest(fields):
        missing = f"it has no {KEY} (an earlier version's have none)"
        raise Damaged("it is not what was written" if KEY in record else missing)
    return fields


def read_json(path: epath.Path, remedy: str, kind: type = dict):
    """A file of one stamped record, or of a list of them.

    Args:
      remedy: what to do about a damaged file, a sentence.
      kind: dict, or list for a list of records.

    Raises FileNotFoundError, and Damaged, which names the file.
    """
    content = path.read_bytes()
    try:
        if not content.strip(b"\0 \n"):
            raise Damaged("it is empty")
        value = json.loads(content)
        if not isinstance(value, kind):
            raise Damaged(f"it is a {type(value).__name__}, not a {kind.__name__}")
        return [unstamped(r) for r in value] if kind is list else unstamped(value)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged: {error}. {remedy}") from error


# ---- folders


def seal_folder(folder: epath.Path) -> None:
    """Writes the seal of a finished folder; its files are read back for it, on object stores too.

    What is not on the disk yet is waited for first, so that a power cut cannot leave a seal of
    bytes that are gone.
    """
    found = {}
    for path in _files(folder):
        sync(path)
        found[_name(folder, path)] = digests.of_file(path)
    if is_local(folder):
        for below in {folder.joinpath(name).parent for name in found}:
            sync(below)
    write_whole(folder / FILE, json.dumps(found, indent=1, sort_keys=True) + "\n")


def check_folder(folder: epath.Path) -> None:
    """Raises Damaged, with what is wrong, where a folder is not as it was sealed.

    A folder that an earlier version wrote has no seal and says so by its metadata: it is taken as
    it is. Files that the seal does not name are passed over.
    """
    if not (folder / FILE).exists():
        _check_unsealed(folder)
        return
    try:
        found = json.loads((folder / FILE).read_bytes())
        names = [(str(name), str(digest)) for name, digest in found.items()]
    except (ValueError, AttributeError, RecursionError) as error:
        raise Damaged(f"its {FILE} is not the one that was written ({error})") from error
    if not names:
        raise Damaged(f"its {FILE} names no file")
    for name, digest in names:
        path = folder / name
        if ".." in path.parts or not str(path).startswith(str(folder)) or not path.is_file():
            raise Damaged(f"{name} is missing, which {FILE} names")
        if digests.of_file(path) != digest:
            raise Damaged(f"{name} is not the file that was written, or {FILE} is not")


def _check_unsealed(folder: epath.Path) -> None:
    try:
        custom = json.loads((folder / METADATA).read_bytes())["custom_metadata"] or {}
        is_old = not MARK.keys() & custom.keys()
    except FileNotFoundError:
        raise Damaged(f"it is incomplete: it has no {METADATA}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"its {METADATA} cannot be read ({error})") from error
    if not is_old:
        raise Damaged(f"it is incomplete: {FILE}, which is written last, is missing")


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        elif path.name != FILE and not path.name.endswith(".partial"):
            yield path


def _name(folder: epath.Path, path: epath.Path) -> str:
    return path.relative_to(folder).as_posix()
