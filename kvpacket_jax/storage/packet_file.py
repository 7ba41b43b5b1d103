"""A packet as a safetensors file, named by what made it and verified when it is read.

A header with the manifest and a digest of each array, an array for the keys and one for the values
of each layer, and a seal: the digest of the header. A compressed packet, whose manifest names the
compressor, has fewer slots than its length; it has their positions too and, where tokens were
merged, a bias for each layer.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import jax
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.packet import Packet, Provenance
from kvpacket_jax.packets.packet import manifest as packet_manifest
from kvpacket_jax.runtime import sealed
from kvpacket_jax.runtime.sealed import Damaged
from kvpacket_jax.storage.provenance import check_fields, differences, to_fields
from models import LanguageModel, kv_cache
from models.identity import digest
from models.kv_cache import KVCache

PACKETS = "packets"  # the folder in a store
# An array of 32 bytes: SHA-256 of all that stands before the arrays. Without it a flipped bit there
# could go unnoticed: the format itself protects nothing.
SEAL = "header_sha256"
POSITIONS = "positions"  # an array of compressed packets
# As safetensors names them.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int32": "I32"}
HEADER_BYTES = 10**8  # safetensors' own limit
READERS = 4  # threads: one waits for the disk while another copies and hashes


class Entry(NamedTuple):
    """What a store keeps of a document."""

    packet: str  # its name
    # SHA-256 of the header of the packet's file, in hexadecimal digits: that has the digests of all
    # arrays, and so stands for every byte. "": written before entries had it.
    seal: str = ""


class Wanted(NamedTuple):
    """A packet to be read, and what it must be."""

    name: str
    provenance: Provenance
    seal: str = ""  # as in Entry


REMEDY = (
    " Run launch.build_packets with the same input and flags: it writes what is missing or damaged."
)


class DamagedFile(Damaged):
    """A file of a store; it says how to mend it, `found` without that what is wrong with it."""

    def __init__(self, path: pathlib.Path, what: str):
        self.path, self.found = path, f"{path} is damaged: {what}."
        super().__init__(f"{self.found}{REMEDY}")


class MissingFile(FileNotFoundError):
    """A packet that is not where it should be."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        super().__init__(f"{path} is not there. Build it: launch.build_packets.")


def packet_name(provenance: Provenance, tokens: Sequence[int], length: int) -> str:
    """SHA-256 of a packet's identity: known before it is built, the same everywhere."""
    return digest(_identity(provenance, tokens, length))


def packet_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Where a store keeps a packet."""
    return folder / PACKETS / f"{name}.safetensors"


def _identity(provenance: Provenance, tokens: Sequence[int], length: int) -> dict:
    return to_fields(provenance) | {"tokens": list(tokens), "length": length}


def load(
    folder: pathlib.Path,
    wanted: Sequence[Wanted],
    model: LanguageModel,
    buckets: Buckets = Buckets(),
) -> list[Packet]:
    """Packets in host memory (on a mesh: on its devices), padded to their buckets.

    Several are read at once. The program that composes a packet takes it to the device, which
    costs less than a transfer for each of its arrays.

    Raises:
      MissingFile, DamagedFile: naming the file; damaged is also another packet than the seal's.
      ValueError: a packet of another provenance, naming what differs.
    """
    wanted = [Wanted(*w) for w in wanted]
    unique = list(dict.fromkeys(wanted))
    with ThreadPoolExecutor(READERS) as pool:
        read = functools.partial(_read, folder, model=model, buckets=buckets)
        packets = dict(zip(unique, pool.map(lambda w: read(*w), unique), strict=True))
    return [packets[w] for w in wanted]


def forget(folder: pathlib.Path, wanted: Sequence[Wanted]) -> None:
    """Asks the system to drop packets' files from memory, so that the next read is the disk's."""
    for name in dict.fromkeys(w.name for w in wanted):
        with packet_path(folder, name).open("rb") as file:
            os.fsync(file.fileno())  # what is not written yet cannot be dropped
            if hasattr(os, "posix_fadvise"):  # macOS has none: what is read is then in memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def verify(folder: pathlib.Path, name: str, model: LanguageModel) -> str:
    """Reads every byte of a packet of the model; its seal, as in Entry. Raises as `load`."""
    with _open(packet_path(folder, name), name) as file:
        _kinds(file, model)
        _compare_arrays(file)
        return file.seal


def read_manifest(
    folder: pathlib.Path, name: str, seal: str = "", every_byte: bool = False
) -> dict:
    """What a packet is of: its provenance's fields, tokens and length. Raises as `load`.

    Needs no model. Unless `every_byte`, only the file's header is read and compared.
    """
    with _open(packet_path(folder, name), name, seal) as file:
        if every_byte:
            _compare_arrays(file)
        return file.manifest


def _read(
    folder: pathlib.Path,
    name: str,
    provenance: Provenance,
    seal: str,
    model: LanguageModel,
    buckets: Buckets,
) -> Packet:
    c = model.config
    with _open(packet_path(folder, name), name, seal) as file:
        manifest = file.manifest
        _check_provenance(file.path, manifest, provenance, model)
        kinds, length = _kinds(file, model), manifest["length"]
        stored = kinds["k.0"].shape[0]
        slots = (buckets.compressed if POSITIONS in kinds else buckets.packet)(stored)

        def part(letter: str):
            shapes = [kinds[f"{letter}.{i}"].shape[1:] for i in range(c.num_layers)]
            if c.scan_layers:
                layers = whole = np.zeros((c.num_layers, 1, slots, *shapes[0]), model.dtype)
            else:
                layers = whole = tuple(np.zeros((1, slots, *s), model.dtype) for s in shapes)
            for i, layer in enumerate(layers):
                _read_array(file, f"{letter}.{i}", layer[0, :stored])
            return whole

        place = np.arange(slots, dtype=np.int32)[None]
        cache = KVCache(part("k"), part("v"), place, place < stored)
        if POSITIONS in kinds:
            cache = cache._replace(positions=_positions(file, kinds, slots))
        if "bias.0" in kinds:
            bias = _bias(file, kinds, slots, c.num_layers)
            cache = cache._replace(bias=bias if c.scan_layers else tuple(bias))
    made_by = dataclasses.replace(provenance, primer=manifest.get("primer", ""))
    kept = stored if POSITIONS in kinds else None
    cache = kv_cache.put(c, cache)
    return Packet(cache, length, packet_manifest(made_by, manifest["tokens"]), kept)


class _File(NamedTuple):
    """A packet's file, open once: what is known of it comes from the bytes that were hashed."""

    path: pathlib.Path
    raw: BinaryIO
    start: int  # of the arrays
    arrays: dict[str, dict]  # dtype, shape and data_offsets by name, as safetensors has them
    manifest: dict
    seal: str  # as in Entry


class _Kind(NamedTuple):
    """What an array is, as numpy makes one."""

    shape: tuple[int, ...]
    dtype: np.dtype


@contextlib.contextmanager
def _open(path: pathlib.Path, name: str, seal: str = "") -> Iterator[_File]:
    """The file, its header as it was written; the arrays are yet to be compared.

    Raises MissingFile, DamagedFile.
    """
    if not path.exists():
        raise MissingFile(path)
    with path.open("rb") as raw:
        try:
            file = _parsed(path, raw, _header(raw))
            identity = {k: v for k, v in file.manifest.items() if k != "arrays"}
            if digest(identity) != name:
                raise ValueError("it holds another packet than its name says")
            if seal not in ("", file.seal):
                raise ValueError("it is not the packet that the document's entry is of")
        except sealed.WRONG_JSON as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DamagedFile(path, what) from error
        yield file


def _header(raw: BinaryIO) -> bytes:
    """The bytes before the arrays; ValueError for a file that is cut or no safetensors."""
    head = raw.read(8)
    size = int.from_bytes(head, "little")
    if size > min(os.fstat(raw.fileno()).st_size - 8, HEADER_BYTES):
        raise ValueError("it is cut short, or no packet")
    return head + raw.read(size)


def _parsed(path: pathlib.Path, raw: BinaryIO, header: bytes) -> _File:
    """Raises of sealed.WRONG_JSON for a header that is no packet's, or not as it was written."""
    arrays = json.loads(header[8:])
    manifest = json.loads(arrays.pop("__metadata__")["manifest"])
    ends = [0]
    for array in arrays.values():
        begin, end = array["data_offsets"]
        if not (type(begin) is type(end) is int and 0 <= begin <= end):
            raise ValueError("its arrays are nowhere")
        ends.append(end)
    if len(header) + max(ends) != os.fstat(raw.fileno()).st_size:
        raise ValueError("it is longer or shorter than its arrays")
    seal = hashlib.sha256(header).digest()
    raw.seek(len(header) + arrays.pop(SEAL)["data_offsets"][0])
    if raw.read(32) != seal:
        raise ValueError("its header is not the one that was written")
    check_fields(manifest)
    numbers = [manifest["length"], *manifest["tokens"]]
    if not isinstance(manifest["arrays"], dict) or not all(map(_is_int32, numbers)):
        raise ValueError("its manifest is no packet's")
    return _File(path, raw, len(header), arrays, manifest, seal.hex())


def _is_int32(number) -> bool:
    return type(number) is int and 0 <= number < 2**31


def _kinds(file: _File, model: LanguageModel) -> dict[str, _Kind]:
    """What each array is; DamagedFile unless they are those of a packet of the model."""
    c, length, K = model.config, file.manifest["length"], model.config.num_kv_heads
    slots, layers = length, range(c.num_layers)
    expected: dict[str, _Kind] = {}
    if "compressor" in file.manifest:
        described = file.arrays.get(POSITIONS, {}).get("shape")
        slots = described[0] if isinstance(described, list) and described else 0
        if not (_is_int32(slots) and 0 < slots <= length):
            raise DamagedFile(file.path, f"it has not the positions of 1 to {length} slots")
        expected[POSITIONS] = _Kind((slots,), np.dtype(np.int32))
        if "bias.0" in file.arrays:
            bias = _Kind((K, slots), np.dtype(np.float32))
            expected |= {f"bias.{i}": bias for i in layers}
    expected |= {f"k.{i}": _Kind((slots, K, c.key_dim(i)), model.dtype) for i in layers}
    expected |= {f"v.{i}": _Kind((slots, K, c.head_dim), model.dtype) for i in layers}
    if not set(expected) == set(file.manifest["arrays"]) == set(file.arrays):
        raise DamagedFile(
            file.path, f"its arrays are not the keys and values of {c.num_layers} layers"
        )
    for name, (shape, dtype) in expected.items():
        array = file.arrays[name]
        begin, end = array["data_offsets"]
        described = array.get("dtype"), array.get("shape"), end - begin
        kind = DTYPES[str(dtype)]
        if described != (kind, list(shape), math.prod(shape) * dtype.itemsize):
            raise DamagedFile(file.path, f"its array {name} is not {kind} {list(shape)}")
    return expected


def _read_array(file: _File, name: str, out: np.ndarray) -> None:
    """Reads an array into its place; DamagedFile for one that is not as it was written."""
    file.raw.seek(file.start + file.arrays[name]["data_offsets"][0])
    numbers = out.view(np.uint8)
    file.raw.readinto(numbers)
    if hashlib.sha256(numbers).hexdigest() != file.manifest["arrays"][name]:
        raise DamagedFile(file.path, f"array {name} is not the one that was written")


def _compare_arrays(file: _File) -> None:
    if set(file.manifest["arrays"]) != set(file.arrays):
        raise DamagedFile(file.path, "its arrays are not those of its manifest")
    for name in file.manifest["arrays"]:
        begin, end = file.arrays[name]["data_offsets"]
        _read_array(file, name, np.empty(end - begin, np.uint8))


def _positions(file: _File, kinds: dict[str, _Kind], slots: int) -> np.ndarray:
    """int32 `[1, slots]`, 0 where there is no token. DamagedFile for those outside the packet."""
    positions = np.empty(*kinds[POSITIONS])
    _read_array(file, POSITIONS, positions)
    if positions.min() < 0 or positions.max() >= file.manifest["length"]:
        raise DamagedFile(file.path, "its positions are not within its length")
    return np.pad(positions, (0, slots - len(positions)))[None]


def _bias(file: _File, kinds: dict[str, _Kind], slots: int, layers: int) -> np.ndarray:
    """float32 `[L, 1, K, slots]`, 0 where there is no token."""
    bias = np.empty((layers, *kinds["bias.0"].shape), np.float32)
    for i, layer in enumerate(bias):
        _read_array(file, f"bias.{i}", layer)
    return np.pad(bias, [(0, 0), (0, 0), (0, slots - bias.shape[-1])])[:, None]


def _check_provenance(
    path: pathlib.Path, manifest: dict, provenance: Provenance, model: LanguageModel
) -> None:
    if wrong := differences(manifest, provenance):
        raise ValueError(
            f"{path} was made with {wrong}, for {model.name}: its keys would be read as something "
            "they are not. Build it again."
        )


# ---- writing


def write(folder: pathlib.Path, packet: Packet) -> Entry:
    """Writes a packet into a folder, as a file of its name without an ending.

    Raises ValueError for a packet that is compressed and does not say by what, or numbers that are
    not finite, and OSError.
    """
    compressed = packet.kept is not None
    if (
        compressed != bool(packet.manifest.compressor)
        or packet.slots > packet.cache.num_slots
        or (packet.cache.bias is not None and not compressed)
    ):
        raise ValueError(
            f"A packet of {packet.slots} slots for {packet.length} tokens, by its manifest "
            f"compressed by {packet.manifest.compressor or 'nothing'}, would come back as another."
        )
    identity = _identity(packet.manifest, packet.manifest.tokens, packet.length)
    arrays = _arrays(packet)
    sums = {n: hashlib.sha256(a.view(np.uint8)).hexdigest() for n, a in arrays.items()}
    text = json.dumps(identity | {"arrays": sums}, sort_keys=True, separators=(",", ":"))
    path = folder / digest(identity)
    arrays[SEAL] = np.zeros(32, np.uint8)
    # One key: safetensors writes several in any order.
    try:
        safetensors_numpy.save_file(arrays, path, metadata={"manifest": text})
    except safetensors.SafetensorError as error:  # which is what it makes of a full disk
        raise OSError(f"{path} could not be written: {error}") from error
    with path.open("r+b") as file:
        return Entry(path.name, _seal(file))


def _arrays(packet: Packet) -> dict[str, np.ndarray]:
    """What a file holds of a packet, by name. ValueError for numbers that are not finite."""
    cache, arrays = packet.cache, {}
    k, v, bias = jax.device_get((cache.k, cache.v, cache.bias))
    parts = {"k": (k, "keys"), "v": (v, "values"), "bias": (bias, "bias")}
    for letter, (layers, word) in parts.items():
        for i, layer in enumerate(() if layers is None else layers):
            own = layer[0, ..., : packet.slots] if letter == "bias" else layer[0, : packet.slots]
            if not np.isfinite(own).all():
                raise ValueError(
                    f"A packet's {word} of layer {i} are not all finite numbers: the model's "
                    "weights or the adapter are damaged."
                )
            arrays[f"{letter}.{i}"] = np.ascontiguousarray(own)
    if packet.kept is not None:
        arrays[POSITIONS] = np.array(jax.device_get(cache.positions)[0, : packet.slots], np.int32)
    return arrays


def _seal(file) -> str:
    """Fills in the digest of the header, which does not depend on it, and returns it."""
    header = _header(file)
    seal = hashlib.sha256(header).digest()
    file.seek(len(header) + json.loads(header[8:])[SEAL]["data_offsets"][0])
    file.write(seal)
    return seal.hex()
