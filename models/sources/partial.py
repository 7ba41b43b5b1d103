"""Folders that are being written: locked by their owner, and removed where the owner is gone."""

import contextlib
import fcntl
import glob
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Iterator

from models.files import make_folder, this_system

SUFFIX = ".partial"
# A folder that nobody has touched for so long is left over, whoever made it.
ABANDONED_SECONDS = 24 * 3600
LOCKING_SECONDS = 1  # more than passes between the making of a folder and its lock


@contextlib.contextmanager
def folder(destination: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder beside `destination`, to be renamed to it; removed in the end if it is not.

    What killed processes left of the same destination is removed first.
    """
    remove_abandoned(destination)
    path = name_for(destination)
    make_folder(path)
    lock = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: age tells
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def name_for(destination: pathlib.Path) -> pathlib.Path:
    """A new name beside `destination`; what has one is removed later if its process was killed."""
    return destination.with_name(f"{destination.name}.{_host()}.{uuid.uuid4().hex}{SUFFIX}")


def remove_abandoned(destination: pathlib.Path) -> None:
    """Removes the partial folders of `destination` that no process is writing any more."""
    for path in destination.parent.glob(f"{glob.escape(destination.name)}.*{SUFFIX}"):
        # A lock is seen by the processes of this system; of others' only age tells.
        here = path.name.split(".")[-3] == _host()
        if _age(path) > (LOCKING_SECONDS if here and _is_free(path) else ABANDONED_SECONDS):
            shutil.rmtree(path, ignore_errors=True)


def _host() -> str:
    """This system since it was started, with no dot in it."""
    return this_system().replace(".", "-")


def _is_free(path: pathlib.Path) -> bool:
    try:
        lock = os.open(path, os.O_RDONLY)
    except OSError:  # it has gone
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        return False
    finally:
        os.close(lock)
    return True


def _age(path: pathlib.Path) -> float:
    """Seconds since anything in a folder was written; 0 for one that is just going."""
    with contextlib.suppress(OSError):
        return time.time() - max(p.stat().st_mtime for p in (path, *path.iterdir()))
    return 0.0
