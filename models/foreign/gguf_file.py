"""GGUF files: the header, read within the file's own size, and views of the tensors.

The gguf library's reader loops over whatever a header counts and takes hundreds of bytes for every
number of an array; this one believes nothing that the file is too short for.
"""

import dataclasses
import math
import mmap
import os
import pathlib
import struct
from typing import Any

import gguf
import numpy as np

from models.foreign import regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)

MOST_KEYS = 2**16
MOST_TENSORS = 2**16
MOST_ELEMENTS = 2**21  # of all arrays together; tokens, their types and merges have up to 1.4 M
MOST_NESTING = 4
STRING_BYTES = 2**24
ALL_STRINGS_BYTES = 2**27

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor as it is stored."""

    name: str
    tensor_type: gguf.GGMLQuantizationType
    shape: tuple[int, ...]  # of its numbers, the fastest axis last
    data: np.ndarray  # a view of the file: floats, or the bytes of quantised blocks

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class File:
    """The metadata and tensors of a GGUF file."""

    fields: dict[str, Any]  # str, int, float, bool or a list of them
    tensors: list[Tensor]


def is_gguf(path: pathlib.Path) -> bool:
    """Whether a regular file begins as GGUF does. Raises ValueError for what is no regular file."""
    with regular.open_binary(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def open_file(path: str | os.PathLike) -> File:
    """The GGUF file `path`, parsed. Raises ValueError if it is not GGUF, truncated or corrupt."""
    path = pathlib.Path(path)
    with regular.open_binary(path) as file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(len(MAGIC))
        if magic != MAGIC:
            raise ValueError(
                f"{path} is not a GGUF file: it begins with {magic!r}, expected {MAGIC!r}. "
                "Is it the whole file, and not a pointer to it or a web page?"
            )
        with regular.one_line(path, f"is truncated or corrupt ({size:,} bytes): get it again"):
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return _Header(data).read()


class _Header:
    """A cursor over the header of a mapped file."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, len(MAGIC)
        self.elements, self.string_bytes = 0, 0

    def read(self) -> File:
        (version,) = self.unpack("I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}; read are {VERSIONS}, little-endian")
        num_tensors = self.count("tensors", MOST_TENSORS, 24)
        num_keys = self.count("keys", MOST_KEYS, 13)
        fields: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self.string()
            if key in fields:
                raise ValueError(f"the key {key} stands twice")
            (kind,) = self.unpack("I")
            fields[key] = self.value(key, kind, 0)
        infos = [self.tensor_info() for _ in range(num_tensors)]
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**16:
            raise ValueError(f"general.alignment is {alignment!r}")
        start = -(-self.at // alignment) * alignment
        names = [info[0] for info in infos]
        if len(set(names)) < len(names):
            raise ValueError("a tensor stands twice")
        tensors, expected = [], 0
        for info in infos:
            name, *_, offset = info
            # As llama.cpp has it: one behind the other. A tensor elsewhere would be read from
            # another's bytes, or leave some that nobody reads.
            if offset != expected:
                raise ValueError(f"{name} begins at {offset:,}, expected {expected:,}")
            tensors.append(self.tensor(start, *info))
            end = offset + tensors[-1].data.nbytes
            expected = -(-end // alignment) * alignment
        if tensors and len(self.data) > start + expected:
            raise ValueError(f"its tensors end at {start + end:,}, and more follows")
        return File(fields, tensors)

    def unpack(self, kinds: str) -> tuple[Any, ...]:
        kinds = "<" + kinds
        at, self.at = self.at, self.at + struct.calcsize(kinds)
        if self.at > len(self.data):
            raise ValueError(f"the header needs {self.at:,} bytes and more")
        return struct.unpack_from(kinds, self.data, at)

    def count(self, what: str, most: int, least_bytes: int) -> int:
        """A declared number of things that take at least so many bytes each."""
        (number,) = self.unpack("Q")
        left = len(self.data) - self.at
        if number > most or number * least_bytes > left:
            raise ValueError(f"it declares {number:,} {what} in the {left:,} bytes that are left")
        return number

    def string(self) -> str:
        size = self.count("characters of a text", STRING_BYTES, 1)
        self.string_bytes += size
        if self.string_bytes > ALL_STRINGS_BYTES:
            raise ValueError(f"its texts have more than {ALL_STRINGS_BYTES:,} bytes")
        at, self.at = self.at, self.at + size
        return self.data[at : self.at].decode("utf-8")

    def value(self, key: str, kind: int, depth: int) -> Any:
        if kind in SCALARS:
            return self.unpack(SCALARS[kind])[0]
        if kind == STRING:
            return self.string()
        if kind != ARRAY or depth == MOST_NESTING:
            raise ValueError(f"{key} is of the unknown type {kind}, or nested too deep")
        (inner,) = self.unpack("I")
        size = struct.calcsize("<" + SCALARS.get(inner, "Q"))
        number = self.count(f"elements of {key}", MOST_ELEMENTS, size)
        self.elements += number
        if self.elements > MOST_ELEMENTS:
            raise ValueError(f"its arrays have more than {MOST_ELEMENTS:,} elements")
        if inner in SCALARS:
            return list(self.unpack(f"{number}{SCALARS[inner]}"))
        return [self.value(key, inner, depth + 1) for _ in range(number)]

    def tensor_info(self) -> tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]:
        name = self.string()
        (num_dims,) = self.unpack("I")
        if not 1 <= num_dims <= 4:
            raise ValueError(f"{name} has {num_dims} axes")
        *dims, kind, offset = self.unpack(f"{num_dims}QIQ")
        return name, tuple(reversed(dims)), gguf.GGMLQuantizationType(kind), offset

    def tensor(self, start: int, name: str, shape, kind, offset: int) -> Tensor:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if not all(shape) or shape[-1] % block:
            raise ValueError(f"{name} has shape {list(shape)} in blocks of {block} numbers")
        row_bytes = shape[-1] // block * size
        n_bytes = math.prod(shape[:-1]) * row_bytes
        begin = start + offset
        if begin + n_bytes > len(self.data):
            raise ValueError(f"its tensors need {begin + n_bytes:,} bytes")
        stored = np.frombuffer(self.data, np.uint8, n_bytes, begin)
        if kind.name in DTYPES:
            data = stored.view(np.dtype(DTYPES[kind.name]).newbyteorder("<")).reshape(shape)
        else:
            data = stored.reshape(*shape[:-1], row_bytes)
        return Tensor(name, kind, shape, data)
