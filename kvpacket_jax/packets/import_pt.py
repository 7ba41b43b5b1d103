"""Imports the adapters that the authors released as torch `.pt` files. No torch, no pickled code.

Such a file is a zip with a pickle that describes the tensors and one raw file for each storage.
"""

import io
import math
import pathlib
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from kvpacket_jax.packets import torch_pickle
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.torch_pickle import MAX_VALUES, Tensor

DTYPES = dict(
    zip(
        torch_pickle.STORAGES,
        (np.dtype("<f4"), np.dtype(ml_dtypes.bfloat16)),
        strict=True,
    )
)
PARTS = ("header", "trailer")  # what the authors' adapters have
MAX_BYTES = 1 << 27  # of a file; an adapter takes under a megabyte
MAX_ENTRIES = 1000  # of the zip
MAX_CHARACTERS = 1 << 20  # of the plain values' texts, one that is named twice counted twice


def read_pt(path: str | pathlib.Path) -> tuple[Adapter, dict]:
    """The adapter of a released `.pt` file, float32, and the plain values beside it.

    Raises ValueError for what is not such a file: damaged, hostile, or another torch object.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(_content(pathlib.Path(path)))) as file:
            return _read(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # a pickle from a stranger fails in any way it likes
        raise ValueError(
            f"{path} is not an adapter as the authors of KV Packet release them: {error}. Expected "
            "a torch zip file with the tensors 'header' and 'trailer', [1, tokens, D]."
        ) from error


def _content(path: pathlib.Path) -> bytes:
    """The file's bytes, if it is no larger than an adapter and its zip lists no more entries."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has over {MAX_BYTES} bytes")
    content = path.read_bytes()
    if content.count(b"PK\1\2") > MAX_ENTRIES:
        raise ValueError(f"its zip has over {MAX_ENTRIES} entries")
    return content


def _read(file: zipfile.ZipFile) -> tuple[Adapter, dict]:
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
        raise ValueError("it is compressed, which torch's files are not")
    if sum(entry.file_size for entry in file.infolist()) > MAX_BYTES:
        raise ValueError(f"it unpacks to over {MAX_BYTES} bytes")
    pickles = [name for name in file.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} entries data.pkl, not one")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in file.namelist() and file.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are not little-endian")
    content = torch_pickle.load(file.read(pickles[0]))
    if not isinstance(content, dict) or not {"header", "trailer"} <= set(content):
        raise ValueError("it holds no header and trailer")
    parts = [_array(file, root, name, content[name]) for name in PARTS]
    if parts[0].shape[1] != parts[1].shape[1]:
        raise ValueError(f"header {parts[0].shape} and trailer {parts[1].shape} differ in width")
    beside = {k: v for k, v in content.items() if k not in PARTS}
    if others := [str(k) for k, v in beside.items() if isinstance(v, Tensor)]:
        raise ValueError(f"it has tensors beside header and trailer: {', '.join(others)}")
    _check_size(beside)
    rest = {k: v for k, v in beside.items() if isinstance(k, str) and _is_plain(v)}
    return Adapter(*parts), rest


def _array(file: zipfile.ZipFile, root: str, name: str, tensor: Any) -> np.ndarray:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is no tensor")
    storage, shape = tensor.storage, tensor.shape
    contiguous = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    if len(shape) != 3 or shape[0] != 1 or min(shape) < 1 or tensor.stride != contiguous:
        raise ValueError(f"{name} has shape {shape} and strides {tensor.stride}")
    raw, dtype = file.read(f"{root}data/{storage.key}"), DTYPES[storage.type]
    if tensor.offset != 0 or not math.prod(shape) == storage.size == len(raw) / dtype.itemsize:
        raise ValueError(f"{name}, {shape}, does not fit its {len(raw)} bytes")
    array = np.frombuffer(raw, dtype).reshape(shape[1:]).astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has numbers that are not finite")
    return array


def _check_size(value: Any) -> None:
    """ValueError for more than any adapter has, written out, or for what holds itself."""
    ahead, seen, characters = [value], 0, 0
    while ahead:
        value, seen = ahead.pop(), seen + 1
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, dict):
            ahead += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            ahead += value
        if max(seen, len(ahead)) > MAX_VALUES:
            raise ValueError(f"it has over {MAX_VALUES} values beside header and trailer")
        if characters > MAX_CHARACTERS:
            raise ValueError(f"it has over {MAX_CHARACTERS} characters beside header and trailer")


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, dict):
        return all(isinstance(k, str) for k in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
