"""A store: a folder with packets, and which packet each document has.

    packets/NAME.safetensors       NAME is the SHA-256 of the packet's identity (packet_file.py)
    documents/P/provenance.json    a folder for each provenance, named by its SHA-256
    documents/P/ID.json            a document's id and its Entry; ID is the id's SHA-256
    documents/P/preamble.entry     the preamble's, where P is a preamble's provenance
    openings/P/…                   the same, of the packets that documents have where they come
                                   first: their provenance is the documents', a place and a preamble

A file appears whole, under its name, or not at all. Any number of processes may write at once, on
one machine or where the file system has locks, and any number read meanwhile.
"""

import contextlib
import itertools
import json
import pathlib
import threading
from collections.abc import Iterable, Iterator, Sequence

from kvpacket_jax.packets.packet import Packet, Provenance
from kvpacket_jax.runtime import sealed
from kvpacket_jax.runtime.names import check_utf8
from kvpacket_jax.storage import entries, not_found, packet_file
from kvpacket_jax.storage.entries import PREAMBLE, PROVENANCE
from kvpacket_jax.storage.packet_file import PACKETS, Damaged, DamagedFile, Entry, packet_path
from kvpacket_jax.storage.provenance import Names, names_in, to_fields
from models.disk import partial
from models.disk.files import make_folder, publish, sync

# ---- reading


def check_no_file(folder: pathlib.Path) -> None:
    """Raises FileNotFoundError for a file, which can be no store."""
    if folder.exists() and not folder.is_dir():
        raise FileNotFoundError(f"{folder} is a file. A store is a folder of packets.")


def check_exists(folder: pathlib.Path) -> None:
    """Raises FileNotFoundError where there is no store."""
    check_no_file(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no store {folder}. launch.build_packets makes one.")
    if any(folder.iterdir()) and not (folder / PACKETS).is_dir():
        raise FileNotFoundError(f"{folder} is no store: it has no folder {PACKETS}.")


def as_ids(documents: Iterable[str]) -> tuple[str, ...]:
    """Ids, each looked at once however they come.

    Raises ValueError for a text, which would pass for a list of letters, and for ids that are none.
    """
    if isinstance(documents, str):
        raise ValueError(f"Documents are a list of ids, not the text {documents!r}.")
    ids = tuple(documents)
    if others := [id for id in ids if not isinstance(id, str)]:
        raise ValueError(
            f"Ids of documents are texts; {others[0]!r} is not one: give {str(others[0])!r}."
        )
    for id in ids:
        check_utf8(id, f"The id {id!a}")
    return ids


def check_ids(folder: pathlib.Path, ids: Sequence[str]) -> None:
    """Raises ValueError for no ids, and for documents that a store has with no provenance at all.

    Needs no model; `find` says what else keeps a document from being read. Raises as `as_ids` too.
    """
    if not as_ids(ids):
        raise ValueError(not_found.none_named(folder, _folders(folder)))
    unknown = [id for id in ids if not any(folder.glob(f"documents/*/{entries.file_name(id)}"))]
    if unknown:
        folders, none = _folders(folder), "It has no documents."
        raise ValueError("\n".join(not_found.unknown(folder, folders, id, none) for id in unknown))


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Those of entries, one a provenance."""
    return [path for path in folder.glob("documents/*") if path.is_dir()]


def check_key(folder: pathlib.Path, key: bytes | None) -> None:
    """Raises ValueError where a build would undo the signatures of a store.

    That is one without a key, or with another than a provenance's entries are signed with; the
    first of them tell.
    """
    for own in _folders(folder):
        signed = []
        for path in (own / PREAMBLE, *itertools.islice(own.glob("*.json"), not_found.LISTED)):
            with contextlib.suppress(Damaged):
                fields = None if path.name == PROVENANCE else entries.read_fields(path)
                if fields and entries.SIGNATURE in fields:
                    signed.append(key is not None and entries.is_signed(path, fields, key))
        if signed and not any(signed):
            by = "a key, and none was given" if key is None else "another key than was given"
            raise ValueError(
                f"The documents of {folder} are signed with {by}: give that key, "
                "--store_key_file=FILE, or build into another folder."
            )


def have_signatures(folder: pathlib.Path, ids: Sequence[str]) -> bool:
    """Whether an entry of these documents, with any provenance, is signed with whatever key."""
    for path in (p for id in ids for p in folder.glob(f"documents/*/{entries.file_name(id)}")):
        with contextlib.suppress(Damaged):
            if entries.SIGNATURE in (entries.read_fields(path) or ()):
                return True
    return False


def find(
    folder: pathlib.Path,
    provenance: Provenance,
    ids: Sequence[str],
    names: Names = Names(),
    key: bytes | None = None,
) -> list[Entry]:
    """The entries of documents.

    Args:
      names: of the model, adapter and template of `provenance`, for messages.
      key: entries that are not signed with it are refused; nothing is asked of them if None.

    Raises:
      Damaged: naming the entry.
      ValueError: documents that are not there, with those that are, closest first; or that are
        there with another provenance, naming what differs.
    """
    own = entries.folder_of(folder, provenance)
    found = [entries.read(own / entries.file_name(id), key) for id in ids]
    unknown = [id for id, entry in zip(ids, found, strict=True) if entry is None]
    if unknown:
        raise ValueError(not_found.why(folder, provenance, unknown, names))
    return found


def find_preamble(
    folder: pathlib.Path, provenance: Provenance, name: str, key: bytes | None = None
) -> Entry:
    """The entry of a preamble whose packet must have this name; Damaged as in `find`.

    Stores built before preambles had one get an entry without a seal, but none with a key.
    """
    path = entries.folder_of(folder, provenance) / PREAMBLE
    entry = entries.read(path, key)
    if entry is None and key is not None:
        raise DamagedFile(
            path, "it is not there, and the preamble's packet is vouched for by nobody"
        )
    if entry is not None and entry.packet != name:
        raise DamagedFile(path, "it is of another packet")
    return entry or Entry(name)


def find_opening(
    folder: pathlib.Path, provenance: Provenance, id: str, name: str, key: bytes | None = None
) -> Entry | None:
    """The entry of the packet that a document has where it comes first, if there is one.

    None also where it is of another packet than `name`: of the text before the one it has now.
    Raises Damaged as `find`.
    """
    path = entries.folder_of(folder, provenance) / entries.file_name(id)
    entry = entries.read(path, key)
    return entry if entry is not None and entry.packet == name else None


class Vouchers:
    """The entries of a provenance, asked whether a packet is the one that they are of.

    Documents with the same text share a packet. All entries, of which there may be thousands, are
    read where those of the documents at hand, and those read before, leave it open.
    """

    def __init__(self, folder: pathlib.Path, provenance: Provenance, key: bytes | None = None):
        """Only entries that are signed with `key` count, if it is not None."""
        self._folder, self._own, self._key = folder, entries.folder_of(folder, provenance), key
        self._all: set[Entry] = set()
        self._lock = threading.Lock()

    def check(self, ids: Sequence[str | None], entry: Entry) -> None:
        """Raises DamagedFile for a packet that is another than the entries are of.

        With a key a packet that no entry is of is refused too: it may be anybody's.

        Args:
          ids: of the documents whose packet it is; None is the preamble.
        """
        known = self._read(self._own / entries.file_name(id) for id in ids)
        seals = {own.seal for own in known if own.packet == entry.packet}
        if entry.seal in seals or not (self._key or seals - {""}):
            return
        with self._lock:
            if entry not in self._all:  # or another process has written it since
                self._all = self._read(self._own.glob("*.json"))
            known = entry in self._all
        if not known:
            path = packet_path(self._folder, entry.packet)
            if self._key and not self._all:
                raise DamagedFile(path, "no entry that is signed with the key is of it")
            raise DamagedFile(path, "it is not the packet that its documents' entries are of")

    def _read(self, paths: Iterable[pathlib.Path]) -> set[Entry]:
        known = set()
        for path in paths:
            with contextlib.suppress(Damaged):  # it is written anew, or is no document's
                known.add(entries.read(path, self._key))
        return known - {None}


def ids(folder: pathlib.Path, provenance: Provenance, key: bytes | None = None) -> list[str]:
    """The ids of the documents with a provenance, in alphabetical order.

    Left out are damaged entries, and with a key those that are not signed with it.
    """
    return sorted(entries.ids_in(entries.folder_of(folder, provenance), key))


def provenances(folder: pathlib.Path) -> list[dict]:
    """The fields of every provenance whose documents are there; a damaged file is passed over.

    The next build of that provenance writes it anew. Of one that was begun, or whose documents were
    removed, only the file is there.
    """
    fields = []
    for path in sorted(folder.glob(f"documents/*/{PROVENANCE}")):
        with contextlib.suppress(Damaged):
            if any(entry.name != PROVENANCE for entry in path.parent.glob("*.json")):
                fields.append(entries.read_provenance(path))
    return fields


def resolved_dtype(folder: pathlib.Path, dtype: str) -> str:
    """Where "auto" was asked for, that of the packets that are there, if they have but one.

    "auto" goes by the machine, and packets of another dtype would not be found.
    """
    if dtype != "auto":
        return dtype
    there = {fields["dtype"] for fields in provenances(folder)}
    return there.pop() if len(there) == 1 else dtype


# ---- writing


class Writer:
    """Puts packets and documents into a store; its methods may run in several threads."""

    def __init__(self, folder: pathlib.Path, own: pathlib.Path, key: bytes | None):
        self.folder, self._own, self._key = folder, own, key
        (own / "plain").touch()
        self._mode = (own / "plain").stat().st_mode
        make_folder(folder / PACKETS)

    def prepare(self, packet: Packet) -> Entry:
        """Writes a packet to the disk that nobody sees yet. Raises as `packet_file.write`."""
        entry = packet_file.write(self._own, packet)
        sync(self._own / entry.packet)  # here, where others may do the same, and not in `place`
        return entry

    def place(self, entry: Entry) -> Entry:
        """Lets a prepared packet be seen, in place of one that is there."""
        self._publish(self._own / entry.packet, packet_path(self.folder, entry.packet))
        return entry

    def alone(self) -> contextlib.AbstractContextManager:
        """While one thread of one process is in it, no other is: to look and then to place.

        Of two packets of one text the last bits may differ, and all its documents have one.
        """
        return partial.locked(self.folder / PACKETS)

    def provenance(self, provenance: Provenance, names: Names = Names()) -> None:
        """Writes down what the next documents are made with; before the first of them.

        The names are kept beside it; one of an adapter stays where none comes now.
        """
        path = entries.folder_of(self.folder, provenance) / PROVENANCE
        make_folder(path.parent)
        if not names.adapter:
            with contextlib.suppress(Damaged):
                names = names._replace(adapter=names_in(entries.read_provenance(path)).adapter)
        fields = to_fields(provenance) | {"names": names._asdict()}
        self._text(path, sealed.stamped(fields))

    def document(self, provenance: Provenance, id: str | None, entry: Entry) -> None:
        """Lets a document's id point to its packet, which must be there; None is the preamble.

        Where it pointed to the packet of another text, the entry of that text's opening goes.
        """
        path = entries.folder_of(self.folder, provenance) / entries.file_name(id)
        if not provenance.place and self._is_of_other_text(path, entry):
            for own in entries.opening_folders(self.folder, provenance):
                (own / path.name).unlink(missing_ok=True)
        fields = {"id": id, **entry._asdict()}
        if self._key is not None:
            fields[entries.SIGNATURE] = entries.signature(self._key, path, id, entry)
        self._text(path, fields)

    def _is_of_other_text(self, path: pathlib.Path, entry: Entry) -> bool:
        """Whether an entry that is there is of another text, or cannot be read any more."""
        try:
            there = entries.read(path)
            if there is None or there.packet == entry.packet:
                return False
            tokens = [packet_file.read_manifest(self.folder, *e)["tokens"] for e in (there, entry)]
        except (Damaged, FileNotFoundError):
            return True
        return tokens[0] != tokens[1]

    def _text(self, path: pathlib.Path, value: dict) -> None:
        text = json.dumps(value, sort_keys=True)
        with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
            if path.read_text("utf-8") == text:
                return
        temporary = self._own / path.name
        temporary.write_text(text, "utf-8")
        self._publish(temporary, path)

    def _publish(self, temporary: pathlib.Path, path: pathlib.Path) -> None:
        # safetensors writes files that only their owner can read; a store may be shared.
        temporary.chmod(self._mode)
        publish(temporary, path)


@contextlib.contextmanager
def writing(folder: pathlib.Path, key: bytes | None = None) -> Iterator[Writer]:
    """A Writer; what it has under way lies in a folder of its own inside the store.

    What killed processes left is removed. The entries it writes are signed with `key`.
    """
    make_folder(folder)
    with partial.folder(folder / PACKETS) as own:
        yield Writer(folder, own, key)
