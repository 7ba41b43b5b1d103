"""Takes documents out of a store, and the packets that no document has any more."""

import contextlib
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kvpacket_jax.packets.adapter import fingerprint
from kvpacket_jax.storage import entries, packet_file, store
from kvpacket_jax.storage.entries import DOCUMENTS, OPENINGS, PREAMBLE, PROVENANCE
from kvpacket_jax.storage.packet_file import PACKETS, Damaged, packet_path
from kvpacket_jax.storage.provenance import fields_alone
from models.disk import partial
from models.disk.files import sync
from models.identity import digest


class Removed(NamedTuple):
    """What was taken out of a store."""

    documents: int
    packets: int
    num_bytes: int  # of the packets' files


def remove(folder: pathlib.Path, ids: Sequence[str]) -> Removed:
    """Removes documents, in whatever ways they were built, and then as `prune`.

    A packet stays that another document of the same text has; so does what other documents'
    packets hold of one that they were primed with (primers.py).

    Raises as `prune`, and ValueError for no ids, or a document that is not there; before anything
    is removed.
    """
    with _alone(folder):
        store.check_ids(folder, ids)
        names = {entries.file_name(id) for id in ids}
        unnamed = _unnamed(folder, names)
        _unlink([path for name in names for path in _entries(folder, name)])
        return _removed(len(names), unnamed)


def prune(folder: pathlib.Path) -> Removed:
    """Removes the packets that no document has: of a text before the one it has now, say.

    Others may answer meanwhile; an answer that is just reading a packet that was superseded may
    miss its file, and says so.

    Raises:
      BlockingIOError: a build is under way.
      Damaged: an entry that does not say which packet it is of.
      FileNotFoundError: no such store; or an entry names a packet that is not there: what it should
        name would go.
    """
    with _alone(folder):
        return _removed(0, _unnamed(folder))


def superseded(folder: pathlib.Path) -> Removed:
    """What `prune` would remove now, as far as that can be told."""
    try:
        return _counted(0, _unnamed(folder))
    except (Damaged, OSError):
        return Removed(0, 0, 0)


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """While no build places packets: each appears together with its documents' entries."""
    store.check_exists(folder)
    if not (folder / PACKETS).is_dir():  # nothing was built yet
        yield
        return
    with partial.locked(folder / PACKETS):
        # The lock is this machine's; another's builds are seen by what they are writing.
        if builds := partial.under_way(folder / PACKETS):
            raise BlockingIOError(
                f"A build is under way in {folder} ({builds[0].name}): remove when it has ended. "
                "If there is none, here or on another machine, one was cut off: delete that folder."
            )
        yield


def _unnamed(folder: pathlib.Path, without: Iterable[str] = ()) -> list[pathlib.Path]:
    """The packets that no entry names, but for entries whose files have one of some names."""
    named: dict[str, str | None] = {}  # packets, and a document of each; None is the preamble
    for path in itertools.chain(_entries(folder, "*.json"), _entries(folder, PREAMBLE)):
        fields = None if path.name in (PROVENANCE, *without) else entries.read_fields(path)
        if fields is not None:
            named.setdefault(fields["packet"], fields["id"])
    packets = {path.stem: path for path in folder.glob(f"{PACKETS}/*.safetensors")}
    for name in sorted(named.keys() - packets.keys()):  # an entry may name another than it did
        what, or_else = "The preamble", ""
        if named[name] is not None:
            what, or_else = f"Document {named[name]!r}", ", or remove it too: launch.store rm"
        raise FileNotFoundError(
            f"{what}: {packet_path(folder, name)} is not there. Build it again, "
            f"launch.build_packets{or_else}."
        )
    unnamed = [packets[name] for name in sorted(packets.keys() - named.keys())]
    return [path for path in unnamed if not _is_preamble(folder, path)]


def _entries(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """The files of entries with a name, of every provenance."""
    return [path for root in (DOCUMENTS, OPENINGS) for path in folder.glob(f"{root}/*/{name}")]


def _is_preamble(folder: pathlib.Path, path: pathlib.Path) -> bool:
    """Whether a packet may be a preamble's: in stores of earlier versions they had no entries."""
    try:
        manifest = packet_file.read_manifest(folder, path.stem)
    except Damaged:
        return False
    if manifest["adapter"] != fingerprint(None) or "compressor" in manifest:
        return False
    own = folder / DOCUMENTS / digest(fields_alone(manifest))
    # A preamble's make is no document's.
    return not any(path.name != PROVENANCE for path in own.glob("*"))


def _removed(documents: int, packets: Sequence[pathlib.Path]) -> Removed:
    what = _counted(documents, packets)
    _unlink(packets)
    return what


def _counted(documents: int, packets: Sequence[pathlib.Path]) -> Removed:
    return Removed(documents, len(packets), sum(path.stat().st_size for path in packets))


def _unlink(paths: Sequence[pathlib.Path]) -> None:
    """Removes files, for good: after a power cut they are not back."""
    for path in paths:
        path.unlink()
    for parent in {path.parent for path in paths}:
        sync(parent)
