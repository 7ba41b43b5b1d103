"""safetensors files: which tensors a folder holds, and in which file each of them is."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import safetensors

from models.foreign import json_file, regular

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Larger than any header in use, by far; its parsed form takes several times as much memory.
HEADER_BYTES = 2**24
# The dtypes of weights, with the bits of the largest number that is finite in bfloat16 too.
LARGEST = {
    "F64": int(np.float64(3.39e38).view(np.int64)),
    "F32": int(np.float32(3.39e38).view(np.int32)),
    "F16": 0x7BFF,
    "BF16": 0x7F7F,
}


def listing(folder: pathlib.Path) -> pathlib.Path:
    """The file that says which tensors a folder holds."""
    return folder / (INDEX if (folder / INDEX).exists() else SINGLE)


def tensor_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Tensor name -> the safetensors file of `folder` that holds it.

    Raises FileNotFoundError or ValueError, naming what is missing or damaged.
    """
    if (folder / INDEX).exists():
        names = _indexed(folder / INDEX)
        missing = sorted({f for f in names.values() if not (folder / f).exists()})
        if missing:
            raise FileNotFoundError(
                f"{folder / INDEX} names {json_file.names(missing)}, not found beside it. The "
                "download is incomplete: fetch the missing files, or remove the folder and fetch "
                "it again."
            )
        return {name: folder / file for name, file in names.items()}
    if not (folder / SINGLE).exists():
        raise FileNotFoundError(
            f"{folder} has neither {SINGLE} nor {INDEX}; it has "
            f"{json_file.names(sorted(p.name for p in folder.iterdir()), 20) or 'nothing'}."
        )
    with open_file(folder / SINGLE) as file:
        return dict.fromkeys(file.keys(), folder / SINGLE)


def _indexed(index: pathlib.Path) -> dict[str, str]:
    """Tensor name -> file name, as an index has it."""
    names = json_file.read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(
            f"{index} is not an index of tensors: 'weight_map' must be an object of tensor names "
            f"and files, found {json_file.brief(names)}. Fetch it again."
        )
    for name, file in names.items():
        if not isinstance(file, str) or not _is_inside(file):
            raise ValueError(
                f"{index}: weight_map puts {json_file.names([name])} in {json_file.brief(file)}, "
                "which is no file of this folder. Fetch it again from where you trust."
            )
    return names


def _is_inside(file: str) -> bool:
    """Whether a relative path stays in its folder. (Links may lead out: hub caches are links.)"""
    path = pathlib.PurePosixPath(file)
    windows = pathlib.PureWindowsPath(file)
    outside = path.is_absolute() or windows.is_absolute() or windows.drive
    parts = {*path.parts, *windows.parts}
    fits = all(len(part.encode("utf-8")) <= 255 for part in path.parts) and len(file) < 2**10
    return bool(path.name) and not outside and ".." not in parts and "\0" not in file and fits


@contextlib.contextmanager
def open_file(path: pathlib.Path) -> Iterator[safetensors.safe_open]:
    """The file `path`, open for reading tensors. Raises ValueError for what is not safetensors."""
    with regular.open_binary(path) as file:
        size = os.fstat(file.fileno()).st_size
        declared = int.from_bytes(file.read(8), "little")
    damaged = "is not a complete safetensors file. It is damaged or cut short: fetch it again"
    if size >= 8 and declared > min(size - 8, HEADER_BYTES):
        raise ValueError(
            f"{path} {damaged} (its header should have {declared:,} bytes; the file has {size:,}, "
            f"headers at most {HEADER_BYTES:,})."
        )
    with regular.one_line(path, damaged):
        opened = safetensors.safe_open(path, framework="numpy")
    with opened:
        yield opened


def check_tensor(view, path: pathlib.Path, name: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError for a tensor that is missing, quantised, or of another shape.

    By the file's header alone: what it declares the library has compared with the file's size.
    """
    if name not in view.keys():  # noqa: SIM118 (a file, not a dict)
        raise ValueError(
            f"{path} lacks {name}, which the index says it holds. The files are of "
            "different downloads: fetch them again."
        )
    part = view.get_slice(name)
    if (stored := part.get_dtype()) not in LARGEST:
        raise ValueError(
            f"{path}: {name} is stored as {stored}; weights are read as {', '.join(LARGEST)}. "
            "Quantised weights mean nothing without their scales: use the model in full precision "
            "or as GGUF."
        )
    if tuple(part.get_shape()) != shape:
        raise ValueError(
            f"{path}: {name} has shape {list(part.get_shape())}, the config asks for "
            f"{list(shape)}. Weights and config.json are of different models."
        )


def read_tensor(view, path: pathlib.Path, name: str) -> np.ndarray:
    """A tensor as it is stored, which `check_tensor` has passed.

    Raises ValueError if it is not finite in float32 and bfloat16.
    """
    tensor = view.get_tensor(name)
    if not _is_finite(tensor, LARGEST[view.get_slice(name).get_dtype()]):
        raise ValueError(
            f"{path}: {name} holds numbers that are not finite. The model is damaged or was badly "
            "merged: fetch it again, or use another."
        )
    return tensor


def _is_finite(tensor: np.ndarray, largest: int) -> bool:
    """Whether no magnitude has larger bits than `largest`."""
    # Bits of floats are ordered as their magnitudes are, and integers are compared many times
    # faster than bfloat16.
    signed = tensor.view(f"int{8 * tensor.dtype.itemsize}")
    unsigned = signed.view(f"uint{8 * tensor.dtype.itemsize}")
    sign = 1 << (8 * tensor.dtype.itemsize - 1)
    return bool(signed.max() <= largest and unsigned.max() <= largest | sign)


def check_held_once(opened: dict[pathlib.Path, safetensors.safe_open], files: dict) -> None:
    """Raises ValueError if two files hold one of the tensors `files`: which of them is meant?"""
    for path, view in opened.items():
        twice = sorted(name for name in view.keys() if files.get(name, path) != path)  # noqa: SIM118
        if twice:
            raise ValueError(
                f"{path} and {files[twice[0]].name} both hold {twice[0]}. The files are of "
                "different downloads: remove the folder and fetch it again."
            )
