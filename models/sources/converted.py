"""Folders that a GGUF file was converted to: what they were made from, and whether they still are.

A conversion is known by the digest of its source, the same in every dtype. It stands for the
folder's bytes only while those are the ones that the conversion wrote: source.json has the digest
of every file, small ones are compared before they are read, weights while they are.
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from models import identity
from models.disk import files, partial
from models.foreign import digests, json_file

NOTE = "source.json"
WEIGHTS = ".safetensors"
READ = (WEIGHTS, ".json", ".jinja")


class ChangedError(ValueError):
    """The files of a converted folder are not those that the conversion wrote."""

    def __init__(self, folder: pathlib.Path, what: str):
        self.folder, self.what = folder, what
        super().__init__(
            f"{folder}: {what}. Give the GGUF file as the model, which is converted again, or copy "
            "the folder out of the cache if the change was meant."
        )


def note(folder: pathlib.Path) -> dict[str, Any] | None:
    """What a conversion recorded in its folder; None for a folder that is none.

    Raises ChangedError for a record that cannot be read or has no digests.
    """
    path = folder / NOTE
    if not path.exists():
        return None
    try:
        recorded = json_file.read_object(path)
    except ValueError as error:
        raise ChangedError(folder, f"{NOTE} cannot be read ({error})") from error
    if recorded.get("kind") != "gguf":  # of somebody else
        return None
    files = recorded.get("files")
    if not isinstance(files, dict) or not files:
        raise ChangedError(folder, f"{NOTE} has no digests of the files that were written")
    if recorded.pop("digest", None) != identity.digest(recorded):
        raise ChangedError(folder, f"{NOTE} has changed since it was converted")
    return recorded


def write_note(folder: pathlib.Path, source: Mapping[str, Any]) -> None:
    """Records what a folder was made from, with the digests of its files and of the record."""
    recorded = {**source, "files": file_digests(folder)}
    content = json.dumps(recorded | {"digest": identity.digest(recorded)}, indent=2)
    files.write_whole(folder / NOTE, content + "\n")


def file_digests(folder: pathlib.Path) -> dict[str, str]:
    """File name -> SHA-256 hex, of all files of a folder but the note."""
    names = sorted(p.name for p in folder.iterdir() if p.name != NOTE)
    return {name: digests.of_file(folder / name) for name in names}


def check_small(folder: pathlib.Path, recorded: Mapping[str, Any]) -> None:
    """Raises ChangedError unless every file is there and all but the weights are as written."""
    for name, sha256 in recorded["files"].items():
        path = folder / name
        if not path.is_file():
            raise ChangedError(folder, f"{name} has gone since it was converted")
        if not name.endswith(WEIGHTS) and digests.of_file(path) != sha256:
            raise ChangedError(folder, f"{name} has changed since it was converted")
    # A file that was added would be read too: it may say where an answer ends.
    there = {p.name for p in folder.iterdir() if p.name.endswith(READ)}
    added = there - set(recorded["files"]) - {NOTE}
    if added:
        raise ChangedError(
            folder, f"{', '.join(sorted(added)[:5])} was added since it was converted"
        )


def check_weights(
    folder: pathlib.Path,
    recorded: Mapping[str, Any],
    sha256s: Mapping[pathlib.Path, str] | None = None,
) -> None:
    """Raises ChangedError unless weights have their recorded digests; computed if not given."""
    if sha256s is None:
        names = [n for n in recorded["files"] if n.endswith(WEIGHTS)]
        sha256s = {folder / name: digests.of_file(folder / name) for name in names}
    for path, sha256 in sha256s.items():
        if recorded["files"].get(path.name) != sha256:
            raise ChangedError(folder, f"{path.name} has changed since it was converted")


def remove(folder: pathlib.Path) -> None:
    """Takes a folder from its place, then deletes it: nobody sees the half of it."""
    aside = partial.name_for(folder)
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
