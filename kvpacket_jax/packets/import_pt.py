"""Imports the adapters that the authors released as torch `.pt` files. No torch, no pickled code.

Such a file is a zip with a pickle that describes the tensors and one raw file for each storage.
The pickle is read by an unpickler that knows four names and refuses all others, so nothing in it
can run.
"""

import collections
import io
import math
import pathlib
import pickle
import pickletools
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from kvpacket_jax.packets.adapter import Adapter

DTYPES = {"FloatStorage": np.dtype("<f4"), "BFloat16Storage": np.dtype(ml_dtypes.bfloat16)}
PARTS = ("header", "trailer")  # what the authors' adapters have
MAX_BYTES = 1 << 30  # of the whole file unpacked; an adapter takes under a megabyte
MAX_VALUES = 10_000  # beside the tensors: settings, and what the pickle numbers


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage, offset, shape, stride, *_):
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Tensor(storage, offset, tuple(shape), tuple(stride))


class _Unpickler(pickle.Unpickler):
    KNOWN = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        **{("torch", name): dtype for name, dtype in DTYPES.items()},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"an unknown kind of object, {kind!r}")
        return _Storage(dtype, str(key), int(size))


def read_pt(path: str | pathlib.Path) -> tuple[Adapter, dict]:
    """The adapter of a released `.pt` file, float32, and the plain values beside it.

    Raises ValueError for what is not such a file: damaged, hostile, or another torch object.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return _read(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # a pickle from a stranger fails in any way it likes
        raise ValueError(
            f"{path} is not an adapter as the authors of KV Packet release them: {error}. Expected "
            "a torch zip file with the tensors 'header' and 'trailer', [1, tokens, D]."
        ) from error


def _read(file: zipfile.ZipFile) -> tuple[Adapter, dict]:
    if sum(entry.file_size for entry in file.infolist()) > MAX_BYTES:
        raise ValueError(f"it unpacks to over {MAX_BYTES} bytes")
    pickles = [name for name in file.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} entries data.pkl, not one")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in file.namelist() and file.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are not little-endian")
    described = file.read(pickles[0])
    # The place of a memo is a number in the file, and the unpickler makes room up to it.
    places = [n for op, n, _ in pickletools.genops(described) if op.name in ("PUT", "LONG_BINPUT")]
    if max(places, default=0) > MAX_VALUES:
        raise ValueError(f"it numbers over {MAX_VALUES} values")
    content = _Unpickler(io.BytesIO(described)).load()
    if not isinstance(content, dict) or not {"header", "trailer"} <= set(content):
        raise ValueError("it holds no header and trailer")
    parts = [_array(file, root, name, content[name]) for name in PARTS]
    if parts[0].shape[1] != parts[1].shape[1]:
        raise ValueError(f"header {parts[0].shape} and trailer {parts[1].shape} differ in width")
    beside = {k: v for k, v in content.items() if k not in PARTS}
    rest = {k: v for k, v in beside.items() if isinstance(k, str) and _is_plain(v)}
    return Adapter(*parts), rest


def _array(file: zipfile.ZipFile, root: str, name: str, tensor: Any) -> np.ndarray:
    if not isinstance(tensor, _Tensor):
        raise ValueError(f"{name} is no tensor")
    storage, shape = tensor.storage, tensor.shape
    contiguous = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    if len(shape) != 3 or shape[0] != 1 or min(shape) < 1 or tensor.stride != contiguous:
        raise ValueError(f"{name} has shape {shape} and strides {tensor.stride}")
    raw = file.read(f"{root}data/{storage.key}")
    if (
        tensor.offset != 0
        or not math.prod(shape) == storage.size == len(raw) / storage.dtype.itemsize
    ):
        raise ValueError(f"{name}, {shape}, does not fit its {len(raw)} bytes")
    array = np.frombuffer(raw, storage.dtype).reshape(shape[1:]).astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has numbers that are not finite")
    return array


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it; ValueError for more than any adapter has, or what holds itself."""
    ahead, seen = [value], 0
    while ahead:
        value, seen = ahead.pop(), seen + 1
        if seen > MAX_VALUES:
            raise ValueError(f"it has over {MAX_VALUES} values beside header and trailer")
        if isinstance(value, dict):
            if not all(isinstance(k, str) for k in value):
                return False
            ahead += value.values()
        elif isinstance(value, list | tuple):
            ahead += value
        elif not (value is None or isinstance(value, bool | int | float | str)):
            return False
    return True
