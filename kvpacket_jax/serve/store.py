"""Packets on disk: a safetensors file each, named by what made it and verified when it is read.

A store is a folder:

    packets/NAME.safetensors       NAME is the SHA-256 of the packet's identity
    documents/P/provenance.json    a folder for each provenance, named by its SHA-256
    documents/P/ID.json            a document's id and its packet's name; ID is the id's SHA-256

A file appears whole, under its name, or not at all. Any number of processes may write at once and
read meanwhile.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.packet import Packet, Provenance
from kvpacket_jax.packets.packet import manifest as packet_manifest
from models import LanguageModel, kv_cache
from models.identity import digest
from models.kv_cache import KVCache

FORMAT = 1
# An array of 32 bytes: SHA-256 of all that stands before the arrays. Without it a flipped bit there
# could go unnoticed: the format itself protects nothing.
SEAL = "header_sha256"
PARTIAL = ".partial-"
LISTED = 2000  # documents of a store that are read to name those like an unknown id
READERS = 4  # threads: one waits for the disk while another copies and hashes


class Damaged(ValueError):
    """A file that is not as it was written."""


def packet_name(provenance: Provenance, tokens: Sequence[int], length: int) -> str:
    """SHA-256 of a packet's identity: known before it is built, the same everywhere."""
    return digest(_identity(provenance, tokens, length))


def packet_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Where a store keeps a packet."""
    return folder / "packets" / f"{name}.safetensors"


def _provenance_fields(provenance: Provenance) -> dict:
    fields = {f.name: getattr(provenance, f.name) for f in dataclasses.fields(Provenance)}
    fields["format"] = FORMAT
    return fields | {"rope": {"type": type(provenance.rope).__name__, **vars(provenance.rope)}}


def _identity(provenance: Provenance, tokens: Sequence[int], length: int) -> dict:
    return _provenance_fields(provenance) | {"tokens": list(tokens), "length": length}


# ---- reading


def load(
    folder: pathlib.Path,
    wanted: Sequence[tuple[str, Provenance]],
    model: LanguageModel,
    buckets: Buckets = Buckets(),
) -> list[Packet]:
    """Packets in host memory (on a mesh: on its devices), padded to their buckets.

    Several are read at once. The program that composes a packet takes it to the device, which
    costs less than a transfer for each of its arrays.

    Args:
      wanted: each one's name and the provenance it must have.

    Raises:
      FileNotFoundError, Damaged: naming the file.
      ValueError: a packet of another provenance, naming what differs.
    """
    unique = list(dict.fromkeys(wanted))
    with ThreadPoolExecutor(READERS) as pool:
        read = functools.partial(_read, folder, model=model, buckets=buckets)
        packets = dict(zip(unique, pool.map(lambda w: read(*w), unique), strict=True))
    return [packets[w] for w in wanted]


def forget(folder: pathlib.Path, wanted: Sequence[tuple[str, Provenance]]) -> None:
    """Asks the system to drop packets' files from memory, so that the next read is the disk's."""
    for name in dict.fromkeys(name for name, _ in wanted):
        with packet_path(folder, name).open("rb") as file:
            os.fsync(file.fileno())  # what is not written yet cannot be dropped
            if hasattr(os, "posix_fadvise"):  # macOS has none: what is read is then in memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def verify(folder: pathlib.Path, name: str) -> None:
    """Reads a packet and compares every byte's digest; FileNotFoundError or Damaged if it fails."""
    path = packet_path(folder, name)
    with _open(path, name) as (file, manifest):
        for array in manifest["arrays"]:
            _array(path, file, manifest, array)


def _read(
    folder: pathlib.Path, name: str, provenance: Provenance, model: LanguageModel, buckets: Buckets
) -> Packet:
    c, path = model.config, packet_path(folder, name)
    with _open(path, name) as (file, manifest):
        _check_provenance(path, manifest, provenance, model)
        length = manifest["length"]
        slots = buckets.packet(length)
        shape = (c.num_layers, 1, slots, c.num_kv_heads, c.head_dim)

        # Array by array into its place: beside the packet there is never more than one of them.
        def part(letter: str) -> np.ndarray:
            layers = np.zeros(shape, model.dtype)
            for i, layer in enumerate(layers):
                layer[0, :length] = _array(path, file, manifest, f"{letter}.{i}")
            return layers

        k, v = (part(x) if c.scan_layers else tuple(part(x)) for x in "kv")
        place = np.arange(slots, dtype=np.int32)[None]
        cache = kv_cache.put(c, KVCache(k, v, place, place < length))
    return Packet(cache, length, packet_manifest(provenance, manifest["tokens"]))


@contextlib.contextmanager
def _open(path: pathlib.Path, name: str) -> Iterator[tuple[safetensors.safe_open, dict]]:
    """The file and its manifest, both as they were written; the arrays are yet to be compared."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there. Build it: launch.build_packets.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            with path.open("rb") as raw:
                if _header_digest(raw) != file.get_tensor(SEAL).tobytes():
                    raise _damaged(path, "its header is not the one that was written")
            manifest = json.loads(file.metadata()["manifest"])
            identity = {k: v for k, v in manifest.items() if k != "arrays"}
            if digest(identity) != name:
                raise _damaged(path, "it holds another packet than its name says")
            yield file, manifest
    except safetensors.SafetensorError as error:
        raise _damaged(path, str(error)) from error


def _header_digest(raw) -> bytes:
    size = raw.read(8)
    return hashlib.sha256(size + raw.read(int.from_bytes(size, "little"))).digest()


def _array(path: pathlib.Path, file, manifest: dict, name: str) -> np.ndarray:
    array = file.get_tensor(name)
    if hashlib.sha256(array.view(np.uint8)).hexdigest() != manifest["arrays"][name]:
        raise _damaged(path, f"array {name} is not the one that was written")
    return array


def _damaged(path: pathlib.Path, what: str) -> Damaged:
    return Damaged(
        f"{path} is damaged: {what}. Run launch.build_packets on the same input again: it writes "
        "what is missing or damaged anew."
    )


def _check_provenance(
    path: pathlib.Path, found: dict, provenance: Provenance, model: LanguageModel
) -> None:
    if wrong := _differences(found, provenance):
        raise ValueError(
            f"{path} was made with {wrong}, for {model.name}. Its keys would be read as something "
            "they are not."
        )


def _differences(found: dict, provenance: Provenance) -> str:
    """In words, the fields in which the provenance on disk differs; empty if there are none."""
    expected = _provenance_fields(provenance)
    return " and ".join(
        f"another {field}: {_short(found[field])}, not {_short(expected[field])}"
        for field in expected
        if found[field] != expected[field]
    )


def _short(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) != 64 else f"{text[:16]}…"


# ---- which packet a document has


def find(folder: pathlib.Path, provenance: Provenance, ids: Sequence[str]) -> list[str]:
    """The names of the packets of documents.

    Raises:
      ValueError: documents that are not there, with those that are, closest first; or that are
        there with another provenance, naming what differs.
    """
    own = _documents(folder, provenance)
    names = [_entry(own / _file_name(id), id) for id in ids]
    unknown = [id for id, name in zip(ids, names, strict=True) if name is None]
    if unknown:
        raise ValueError("\n".join(_why_unknown(folder, provenance, id) for id in unknown))
    return names


def provenances(folder: pathlib.Path) -> list[dict]:
    """The fields of every provenance whose documents are there; a damaged file is passed over.

    The next build of that provenance writes it anew.
    """
    found = []
    for path in sorted(folder.glob("documents/*/provenance.json")):
        with contextlib.suppress(Damaged):
            found.append(_provenance_at(path))
    return found


def _provenance_at(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def resolved_dtype(folder: pathlib.Path, dtype: str) -> str:
    """Where "auto" was asked for, that of the packets that are there, if they have but one.

    "auto" goes by the machine, and packets of another dtype would not be found.
    """
    if dtype != "auto":
        return dtype
    there = {fields["dtype"] for fields in provenances(folder)}
    return there.pop() if len(there) == 1 else dtype


def _documents(folder: pathlib.Path, provenance: Provenance) -> pathlib.Path:
    return folder / "documents" / digest(_provenance_fields(provenance))


def _file_name(id: str) -> str:
    # An id may be an address or a sentence, and file systems differ in what they allow.
    return f"{hashlib.sha256(id.encode()).hexdigest()}.json"


def _entry(path: pathlib.Path, id: str | None = None) -> str | None:
    """The packet an entry names (its id if none is given), None if there is no entry."""
    try:
        found = json.loads(path.read_text("utf-8"))
        if _file_name(found["id"]) != path.name:
            raise ValueError(f"it is of document {found['id']!r}")
        return found["id"] if id is None else found["packet"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from error


def _why_unknown(folder: pathlib.Path, provenance: Provenance, id: str) -> str:
    for entry in sorted(folder.glob(f"documents/*/{_file_name(id)}")):
        other = _provenance_at(entry.parent / "provenance.json")
        wrong = _differences(other, provenance)
        return (
            f"{folder} has document {id!r}, but made with {wrong}. Give the model, adapter, "
            "template and dtype it was built with, or build it with these (bare: adapter none)."
        )
    known, paths = [], list(_documents(folder, provenance).glob("*.json"))
    if len(paths) > LISTED:  # each is a file to be read
        return f"{folder} has no document {id!r} among its {len(paths) - 1:,}."
    for path in paths:
        with contextlib.suppress(Damaged):  # another's damage is not what was asked about
            known += [_entry(path)] if path.name != "provenance.json" else []
    close = difflib.get_close_matches(id, known, n=20, cutoff=0.0)
    more = f" and {len(known) - len(close)} more" if len(known) > len(close) else ""
    listed = f"It has {', '.join(close)}{more}." if known else "It has none of this provenance."
    return f"{folder} has no document {id!r}. {listed}"


# ---- writing


class Writer:
    """Puts packets and documents into a store; its methods may run in several threads."""

    def __init__(self, folder: pathlib.Path, partial: pathlib.Path):
        self.folder, self._partial = folder, partial
        self._mode = (partial / "lock").stat().st_mode
        (folder / "packets").mkdir(exist_ok=True)

    def packet(self, packet: Packet) -> str:
        """Writes a packet, over one that is there; its name.

        Raises ValueError for a compressed packet, which the format does not hold yet, and OSError.
        """
        if packet.cache.bias is not None or packet.length > packet.cache.num_slots:
            raise ValueError("A compressed packet cannot be stored: it would come back as another.")
        identity = _identity(packet.manifest, packet.manifest.tokens, packet.length)
        name = digest(identity)
        arrays = {}
        for letter, layers in zip(
            "kv", jax.device_get((packet.cache.k, packet.cache.v)), strict=True
        ):
            for i, layer in enumerate(layers):
                arrays[f"{letter}.{i}"] = np.ascontiguousarray(layer[0, : packet.length])
        sums = {n: hashlib.sha256(a.view(np.uint8)).hexdigest() for n, a in arrays.items()}
        text = json.dumps(identity | {"arrays": sums}, sort_keys=True, separators=(",", ":"))
        temporary = self._partial / name
        arrays[SEAL] = np.zeros(32, np.uint8)
        # One key: safetensors writes several in any order.
        try:
            safetensors_numpy.save_file(arrays, temporary, metadata={"manifest": text})
        except safetensors.SafetensorError as error:  # which is what it makes of a full disk
            raise OSError(f"{temporary} could not be written: {error}") from error
        with temporary.open("r+b") as file:
            _seal(file)
            self._publish(file, packet_path(self.folder, name))
        return name

    def provenance(self, provenance: Provenance) -> None:
        """Says what made the documents to come; before the first of them."""
        path = _documents(self.folder, provenance) / "provenance.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._text(path, _provenance_fields(provenance))

    def document(self, provenance: Provenance, id: str, name: str) -> None:
        """Lets a document's id point to its packet, which must be there."""
        self._text(_documents(self.folder, provenance) / _file_name(id), {"id": id, "packet": name})

    def _text(self, path: pathlib.Path, value: dict) -> None:
        text = json.dumps(value, sort_keys=True)
        with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
            if path.read_text("utf-8") == text:
                return
        with (self._partial / path.name).open("w+", encoding="utf-8") as file:
            file.write(text)
            self._publish(file, path)

    def _publish(self, file, path: pathlib.Path) -> None:
        file.flush()
        # safetensors writes files that only their owner can read; a store may be shared.
        os.chmod(file.name, self._mode)
        os.fsync(file.fileno())
        os.replace(file.name, path)


def _seal(file) -> None:
    """Fills in the digest of the header, which does not depend on it."""
    start = 8 + int.from_bytes(file.read(8), "little")
    file.seek(8)
    place = json.loads(file.read(start - 8))[SEAL]["data_offsets"][0]
    file.seek(0)
    seal = _header_digest(file)
    file.seek(start + place)
    file.write(seal)


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[Writer]:
    """A Writer; what it has under way lies in a folder of its own inside the store.

    Folders that killed processes left behind are removed: a live process holds a lock in its own.
    Where a file system has no locks nobody can tell, and they stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError):
            left.rmdir()  # one without its lock yet; a live owner makes another
        # Opened, not made: a second lock file would let two processes think they hold it.
        with contextlib.suppress(OSError), (left / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
    with contextlib.ExitStack() as stack:
        partial = _own_folder(folder, stack)
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
        yield Writer(folder, partial)


def _own_folder(folder: pathlib.Path, stack: contextlib.ExitStack) -> pathlib.Path:
    while True:
        partial = pathlib.Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
        # Until it is locked another process may take it for a dead one's and remove it.
        with contextlib.suppress(FileNotFoundError):
            lock = stack.enter_context((partial / "lock").open("w"))
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            (partial / "lock").stat()
            return partial
