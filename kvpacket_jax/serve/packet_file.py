"""A packet as a safetensors file, named by what made it and verified when it is read.

A header with the manifest and a digest of each array, an array for the keys and one for the values
of each layer, and a seal: the digest of the header.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.packet import Packet, Provenance
from kvpacket_jax.packets.packet import manifest as packet_manifest
from kvpacket_jax.runtime.sealed import Damaged
from kvpacket_jax.serve.provenance import differences, to_fields
from models import LanguageModel, kv_cache
from models.identity import digest
from models.kv_cache import KVCache

PACKETS = "packets"  # the folder in a store
# An array of 32 bytes: SHA-256 of all that stands before the arrays. Without it a flipped bit there
# could go unnoticed: the format itself protects nothing.
SEAL = "header_sha256"
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # as safetensors names them
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


def damaged(path: pathlib.Path, what: str) -> Damaged:
    """The error for a file of a store, with what is wrong with it and how to mend it."""
    return Damaged(
        f"{path} is damaged: {what}. Run launch.build_packets on the same input again: it writes "
        "what is missing or damaged anew."
    )


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

    Args:
    Raises:
      FileNotFoundError, Damaged: naming the file; damaged is also another packet than the seal's.
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


def verify(folder: pathlib.Path, name: str) -> str:
    """Reads a packet and checks all that `load` does but its model; its seal, as in Entry.

    Raises FileNotFoundError, Damaged.
    """
    path = packet_path(folder, name)
    with _open(path, name) as (file, manifest):
        _layout(path, file, manifest)
        for array in manifest["arrays"]:
            _array(path, file, manifest, array)
        return file.get_tensor(SEAL).tobytes().hex()


def read_tokens(folder: pathlib.Path, name: str, seal: str = "") -> list[int]:
    """The token ids of a packet's document; FileNotFoundError or Damaged as in `verify`.

    Only the file's header is read and compared.
    """
    with _open(packet_path(folder, name), name, seal) as (_, manifest):
        return manifest["tokens"]


def _read(
    folder: pathlib.Path,
    name: str,
    provenance: Provenance,
    seal: str,
    model: LanguageModel,
    buckets: Buckets,
) -> Packet:
    c, path = model.config, packet_path(folder, name)
    with _open(path, name, seal) as (file, manifest):
        _check_provenance(path, manifest, provenance, model)
        if (layout := _layout(path, file, manifest)) != (c.num_layers, c.num_kv_heads, c.head_dim):
            raise damaged(path, f"its layers, heads and head dim are {layout}")
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
    made_by = dataclasses.replace(provenance, primer=manifest.get("primer", ""))
    return Packet(cache, length, packet_manifest(made_by, manifest["tokens"]))


@contextlib.contextmanager
def _open(
    path: pathlib.Path, name: str, seal: str = ""
) -> Iterator[tuple[safetensors.safe_open, dict]]:
    """The file and its manifest, both as they were written; the arrays are yet to be compared."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there. Build it: launch.build_packets.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            with path.open("rb") as raw:
                digest_of_header = _header_digest(raw)
                if digest_of_header != file.get_tensor(SEAL).tobytes():
                    raise damaged(path, "its header is not the one that was written")
            if seal not in ("", digest_of_header.hex()):
                raise damaged(path, "it is not the packet that the document's entry is of")
            manifest = json.loads(file.metadata()["manifest"])
            identity = {k: v for k, v in manifest.items() if k != "arrays"}
            if digest(identity) != name:
                raise damaged(path, "it holds another packet than its name says")
            yield file, manifest
    except safetensors.SafetensorError as error:
        raise damaged(path, str(error)) from error


def _header_digest(raw) -> bytes:
    size = raw.read(8)
    return hashlib.sha256(size + raw.read(int.from_bytes(size, "little"))).digest()


def _layout(path: pathlib.Path, file, manifest: dict) -> tuple[int, int, int]:
    """Layers, key/value heads and head dim, of a file that has the arrays of a packet, no others.

    All are `[length, K, H]`, in the manifest's dtype.
    """
    layers = len(manifest["arrays"]) // 2
    expected = {f"{letter}.{i}" for letter in "kv" for i in range(layers)}
    if not expected or not expected == set(manifest["arrays"]) == set(file.keys()) - {SEAL}:
        raise damaged(path, "it has other arrays than the keys and values of its layers")
    slices = [file.get_slice(array) for array in expected]
    shapes = {tuple(x.get_shape()) for x in slices}
    dtype = DTYPES.get(manifest["dtype"])
    length, *rest = next(iter(shapes))
    if len(shapes) > 1 or length != manifest["length"] or len(rest) != 2:
        raise damaged(path, f"its arrays have shapes {sorted(shapes)}")
    if {x.get_dtype() for x in slices} != {dtype}:
        raise damaged(path, f"its numbers are not {manifest['dtype']}")
    return layers, *rest


def _array(path: pathlib.Path, file, manifest: dict, name: str) -> np.ndarray:
    array = file.get_tensor(name)
    if hashlib.sha256(array.view(np.uint8)).hexdigest() != manifest["arrays"][name]:
        raise damaged(path, f"array {name} is not the one that was written")
    return array


def _check_provenance(
    path: pathlib.Path, manifest: dict, provenance: Provenance, model: LanguageModel
) -> None:
    if wrong := differences(manifest, provenance):
        raise ValueError(
            f"{path} was made with {wrong}, for {model.name}. Its keys would be read as something "
            "they are not."
        )


# ---- writing


def write(folder: pathlib.Path, packet: Packet) -> Entry:
    """Writes a packet into a folder, as a file of its name without an ending.

    Raises ValueError for a compressed packet, which the format does not hold yet, or numbers that
    are not finite, and OSError.
    """
    if packet.cache.bias is not None or packet.length > packet.cache.num_slots:
        raise ValueError("A compressed packet cannot be stored: it would come back as another.")
    identity = _identity(packet.manifest, packet.manifest.tokens, packet.length)
    arrays = {}
    for letter, layers in zip("kv", jax.device_get((packet.cache.k, packet.cache.v)), strict=True):
        for i, layer in enumerate(layers):
            arrays[f"{letter}.{i}"] = np.ascontiguousarray(layer[0, : packet.length])
            if not np.isfinite(arrays[f"{letter}.{i}"]).all():
                raise ValueError(
                    f"A packet's {'keys' if letter == 'k' else 'values'} of layer {i} are not all "
                    "finite numbers: the model's weights or the adapter are damaged."
                )
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


def _seal(file) -> str:
    """Fills in the digest of the header, which does not depend on it, and returns it."""
    start = 8 + int.from_bytes(file.read(8), "little")
    file.seek(8)
    place = json.loads(file.read(start - 8))[SEAL]["data_offsets"][0]
    file.seek(0)
    seal = _header_digest(file)
    file.seek(start + place)
    file.write(seal)
    return seal.hex()
