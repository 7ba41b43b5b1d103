"""SHA-256 of files, computed by threads while others read the same files."""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import threading
from collections.abc import Iterable

from models.disk.files import AnyPath, is_local
from models.foreign import regular

BUFFER_BYTES = 2**18  # stays in the processor's cache between reading and hashing
THREADS = 2


def of_file(path: AnyPath) -> str:
    """SHA-256 hex of a regular file, or one of an object store. Raises as `regular.open_binary`."""
    opened = regular.open_binary(path) if is_local(path) else path.open("rb")
    with contextlib.closing(opened) as file:
        return _digest(file, threading.Event())


class Digests:
    """The digests of files that are being read: the bytes that are hashed are those that are read.

    Entered before the files are opened elsewhere, `result` is called after they were read:

        with Digests(paths) as digests:
            …  # open and read the files
            sha256 = digests.result()
    """

    def __init__(self, paths: Iterable[pathlib.Path]):
        self._paths = sorted(set(paths))
        self._stop = threading.Event()

    def __enter__(self) -> "Digests":
        self._files = {}
        try:
            for path in self._paths:
                self._files[path] = regular.open_binary(path)
        except (ValueError, OSError):
            self._close()
            raise
        self._before = {path: os.fstat(file.fileno()) for path, file in self._files.items()}
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS, "sha256")
        self._futures = {
            path: self._pool.submit(_digest, file, self._stop) for path, file in self._files.items()
        }
        return self

    def __exit__(self, *error) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        self._close()

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def result(self) -> dict[pathlib.Path, str]:
        """SHA-256 hex of each file. Raises ValueError for one that changed in the meantime."""
        found = {path: future.result() for path, future in self._futures.items()}
        for path, file in self._files.items():
            states = self._before[path], os.fstat(file.fileno()), os.stat(path)
            if len({(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in states}) > 1:
                raise ValueError(
                    f"{path} changed while it was read. Load the model again when it is whole."
                )
        return found


def _digest(file, stop: threading.Event) -> str:
    sha256 = hashlib.sha256()
    while (chunk := file.read(BUFFER_BYTES)) and not stop.is_set():
        sha256.update(chunk)
    return sha256.hexdigest()
