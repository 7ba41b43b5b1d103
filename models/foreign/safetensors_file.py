"""safetensors files: which tensors a folder holds, and in which file each of them is."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import safetensors

from models.foreign import json_file, regular

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Larger than any header in use, by far; its parsed form takes several times as much memory.
HEADER_BYTES = 2**24
FLOATS = ("F64", "F32", "F16", "BF16")


def tensor_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Tensor name -> the safetensors file of `folder` that holds it.

    Raises FileNotFoundError or ValueError, naming what is missing or damaged.
    """
    if (folder / INDEX).exists():
        names = _indexed(folder / INDEX)
        missing = sorted({f for f in names.values() if not (folder / f).exists()})
        if missing:
            raise FileNotFoundError(
                f"{folder / INDEX} names {', '.join(missing[:5])}, not found beside it. The "
                "download is incomplete: fetch the missing files, or remove the folder and fetch "
                "it again."
            )
        return {name: folder / file for name, file in names.items()}
    if not (folder / SINGLE).exists():
        raise FileNotFoundError(
            f"{folder} has neither {SINGLE} nor {INDEX}; it has "
            f"{', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'}."
        )
    with open_file(folder / SINGLE) as file:
        return dict.fromkeys(file.keys(), folder / SINGLE)


def _indexed(index: pathlib.Path) -> dict[str, str]:
    """Tensor name -> file name, as an index has it."""
    names = json_file.read_object(index, json_file.INDEX_BYTES).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(
            f"{index} is not an index of tensors: 'weight_map' must be an object of tensor names "
            f"and files, found {json_file.brief(names)}. Fetch it again."
        )
    for name, file in names.items():
        if not isinstance(file, str) or not _is_inside(file):
            raise ValueError(
                f"{index}: weight_map puts {name} in {json_file.brief(file)}, which is no file of "
                "this folder. Fetch it again from where you trust."
            )
    return names


def _is_inside(file: str) -> bool:
    """Whether a relative path stays in its folder. (Links may lead out: hub caches are links.)"""
    path = pathlib.PurePosixPath(file)
    windows = pathlib.PureWindowsPath(file)
    outside = path.is_absolute() or windows.is_absolute() or windows.drive
    parts = {*path.parts, *windows.parts}
    return bool(path.name) and not outside and ".." not in parts and "\0" not in file


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


def check_dtype(path: pathlib.Path, name: str, stored: str) -> None:
    """Raises ValueError for a tensor that is not of floating-point numbers as they are."""
    if stored not in FLOATS:
        raise ValueError(
            f"{path}: {name} is stored as {stored}; weights are read as {', '.join(FLOATS)}. "
            "Quantised weights mean nothing without their scales: use the model in full precision "
            "or as GGUF."
        )


def check_held_once(opened: dict[pathlib.Path, safetensors.safe_open], files: dict) -> None:
    """Raises ValueError if two files hold one of the tensors `files`: which of them is meant?"""
    for path, view in opened.items():
        twice = sorted(name for name in view.keys() if files.get(name, path) != path)  # noqa: SIM118
        if twice:
            raise ValueError(
                f"{path} and {files[twice[0]].name} both hold {twice[0]}. The files are of "
                "different downloads: remove the folder and fetch it again."
            )
