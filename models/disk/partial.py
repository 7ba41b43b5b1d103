"""Folders that are being written: locked by their owner, and removed where the owner is gone.

Their names say which system the owner runs on: its processes see each other's locks.
"""

import contextlib
import fcntl
import glob
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Iterator

from models.disk.files import make_folder, this_system

SUFFIX = ".partial"
# A folder that nobody has touched for so long is left over, unless its lock is seen to be held.
ABANDONED_SECONDS = 24 * 3600


@contextlib.contextmanager
def folder(destination: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder beside `destination`, to be renamed to it; removed in the end if it is not.

    What killed processes left of the same destination is removed first. Raises OSError.
    """
    remove_abandoned(destination)
    with contextlib.ExitStack() as stack:
        while True:
            path = name_for(destination)
            make_folder(path)
            # Until it is locked another process may take it for a dead one's and remove it.
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(locked(path))
                path.stat()
                break
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def name_for(destination: pathlib.Path) -> pathlib.Path:
    """A new name beside `destination`; what has one is removed later if its process was killed."""
    return destination.with_name(f"{destination.name}.{_host()}.{uuid.uuid4().hex}{SUFFIX}")


def remove_abandoned(destination: pathlib.Path) -> None:
    """Removes the partial folders of `destination` that no process is writing any more."""
    for path in destination.parent.glob(f"{glob.escape(destination.name)}.*{SUFFIX}"):
        # Of other systems' folders, and where a file system has no locks, only age tells.
        here = path.name.split(".")[-3] == _host()
        # OSError: it is locked, or has just gone.
        with contextlib.suppress(OSError), locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
            if (here and held) or _age(path) > ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def under_way(destination: pathlib.Path) -> list[pathlib.Path]:
    """The partial folders of `destination` that somebody is, or may be, writing."""
    remove_abandoned(destination)
    return sorted(destination.parent.glob(f"{glob.escape(destination.name)}.*{SUFFIX}"))


@contextlib.contextmanager
def locked(path: pathlib.Path, how: int = fcntl.LOCK_EX) -> Iterator[bool]:
    """Holds a folder's lock, alone of all processes and threads; False without locks there.

    Raises BlockingIOError where another process holds it, FileNotFoundError.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        held = True
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            raise
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _host() -> str:
    """This system since it was started, with no dot in it."""
    return this_system().replace(".", "-")


def _age(path: pathlib.Path) -> float:
    """Seconds since anything in a folder was written; 0 for one that is just going."""
    with contextlib.suppress(OSError):
        return time.time() - max(p.stat().st_mtime for p in (path, *path.iterdir()))
    return 0.0
