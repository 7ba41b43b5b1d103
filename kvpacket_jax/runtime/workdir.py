"""One process at a time writes in a workdir."""

import contextlib
from collections.abc import Iterator

import filelock
from etils import epath

from kvpacket_jax.runtime import hosts

LOCK = ".lock"


@contextlib.contextmanager
def locked(workdir: epath.PathLike) -> Iterator[None]:
    """Around work in a folder, which is made if it is not there; a killed process frees it.

    Of processes that train together the first takes the lock for all. Object stores (gs://…) and
    file systems without locks have none.

    Raises:
      RuntimeError: another process is at work there.
    """
    folder, lock = hosts.absolute(workdir), None
    with hosts.together():  # where the first is refused, all are
        if "://" not in str(folder) and hosts.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(folder / LOCK)
            try:
                with contextlib.suppress(NotImplementedError):
                    lock.acquire(timeout=0)
            except filelock.Timeout:
                raise RuntimeError(
                    f"Another process is at work in {folder}. Wait until it has ended, or choose "
                    "another --workdir."
                ) from None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
