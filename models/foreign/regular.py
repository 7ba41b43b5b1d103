"""Regular files, read within a limit: no device, no pipe and no endless file behind a link."""

import contextlib
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import BinaryIO

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_binary(path: pathlib.Path) -> BinaryIO:
    """The regular file `path`, open for reading.

    Raises ValueError for a folder, a pipe or a device, without waiting for one; OSError if it
    cannot be opened.
    """
    # Without O_NONBLOCK the opening of a pipe waits for somebody who writes.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ValueError(f"{path} is {KINDS.get(stat.S_IFMT(mode), 'no file')}, not a file.")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_text(path: pathlib.Path, limit: int) -> str:
    """The text of a UTF-8 file of at most `limit` bytes. ValueError for any other."""
    with open_binary(path) as file:
        content = bytearray()
        while part := file.read(limit + 1 - len(content)):
            content += part
    if len(content) > limit:
        raise ValueError(f"{path} is larger than {limit:,} bytes: it cannot be what its name says.")
    try:
        text = content.decode("utf-8")
        return text.replace("\r\n", "\n").replace("\r", "\n")  # as Python's text files have it
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start:,}). It is damaged: fetch it again."
        ) from error


@contextlib.contextmanager
def one_line(path: pathlib.Path, what: str) -> Iterator[None]:
    """Turns what a parser raises over `path` into "{path} {what} (…)", a ValueError.

    Parsers raise more than errors of values: RecursionError, AttributeError, a panic of Rust that
    is not even an Exception. OSError passes, for it is of the machine and names the file.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, OSError):
        raise
    except BaseException as error:
        words = " ".join(str(error).split())[:600] or type(error).__name__
        raise ValueError(f"{path} {what} ({words}).") from error
