"""A workdir is one program's, and one process at a time writes there."""

import contextlib
from collections.abc import Iterator

import filelock
from etils import epath

from kvpacket_jax.runtime import hosts

LOCK = ".lock"
# What each program leaves in its workdir, from its first work on, and what that is.
TRAIN, EVALUATE = "launch.train", "launch.evaluate"
LEFT = {
    TRAIN: ("a training run", ("checkpoints", "metrics.jsonl")),
    EVALUATE: ("an evaluation", ("run.json", "rows.jsonl")),
}


def check_program(folder: epath.Path, program: str) -> None:
    """Raises ValueError for a folder that holds another program's work."""
    for other, (what, names) in LEFT.items():
        there = [name for name in names if (folder / name).exists()]
        if other != program and there:
            raise ValueError(
                f"{folder} is the workdir of {what} ({other} left {there[0]} there), not one for "
                f"{program}: choose another --workdir, {folder / program.split('.')[1]} say."
            )


@contextlib.contextmanager
def locked(workdir: epath.PathLike, program: str) -> Iterator[None]:
    """Around a program's work in a folder, which is made if it is not there; a killed one frees it.

    Of processes that train together the first takes the lock for all. Object stores (gs://…) and
    file systems without locks have none.

    Args:
      program: TRAIN or EVALUATE.

    Raises:
      ValueError: the folder is another program's.
      RuntimeError: another process is at work there.
    """
    folder, lock = hosts.absolute(workdir), None
    with hosts.together():  # where the first is refused, all are
        if hosts.is_first():
            check_program(folder, program)
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
