"""Checks of the folders and files that flags name, before anything expensive is done."""

import pathlib


def check_named(flag: str, value: str) -> None:
    """Raises ValueError for an empty name: the folder that one is in would be taken."""
    if not value:
        raise ValueError(f"--{flag}= names no folder: is a variable not set?")


def local(flag: str, value: str) -> pathlib.Path:
    """A folder on this machine; ValueError for an empty name, and for an object store's."""
    check_named(flag, value)
    if "://" in value:
        raise ValueError(
            f"--{flag}={value}: only launch.train writes to object stores. Give a folder on this "
            "machine."
        )
    return pathlib.Path(value).expanduser()


def check_file(flag: str, value: str | None, ending: str = "") -> None:
    """Raises ValueError for a folder where a file is to be written; None is no file.

    Also for a name without the `ending` of what is written, such as ".svg".
    """
    if value is not None and (not value or pathlib.Path(value).expanduser().is_dir()):
        raise ValueError(f"--{flag}={value} is a folder: give a file.")
    if value is not None and not value.lower().endswith(ending):
        raise ValueError(f"--{flag}={value}: name a file that ends in {ending}.")
