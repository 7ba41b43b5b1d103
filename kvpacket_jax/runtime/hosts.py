"""What processes that train together agree on. Alone, a process agrees with itself.

Every host calls these in the same places, once for each step of the run: none can wait for a host
that never comes. Plans (which example a step trains on) need no word between them: they follow from
the seed and the step.
"""

import contextlib
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from models.disk.files import write_whole


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Makes this process one of those that train together; before anything else of jax.

    Raises RuntimeError or ValueError where neither the arguments nor the cluster say who is who.
    """
    try:
        # No list of devices: all of the host's. Left to itself jax takes one for each Slurm task.
        jax.distributed.initialize(coordinator, processes, process, local_device_ids=[])
    except ValueError as error:
        raise ValueError(
            f"--distributed could not tell which process this is ({error}). Give all three of "
            "--coordinator_address=HOST:PORT, --num_processes and --process_id."
        ) from error


def absolute(path: epath.PathLike) -> epath.Path:
    """A folder of this host's disks, absolute as orbax wants it; gs://… as it is."""
    return epath.Path(path if "://" in str(path) else pathlib.Path(path).expanduser().absolute())


def is_first() -> bool:
    """Whether this process writes what one must write: logs, figures, lines for people."""
    return jax.process_index() == 0


def share(values: np.ndarray) -> np.ndarray:
    """`values` of every host, stacked: `[hosts, ...]`."""
    if jax.process_count() == 1:
        return values[None]
    return np.asarray(multihost_utils.process_allgather(values))


def another_failed() -> RuntimeError:
    """What a host raises that was told that another cannot go on."""
    return RuntimeError("Another host could not go on; its message says why.")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what a host does by itself: where one fails all stop, and none waits for it."""
    try:
        yield
    except Exception:
        share(np.bool_(True))
        raise
    if share(np.bool_(False)).any():
        raise another_failed()


def check_shared(folder: epath.Path) -> None:
    """Raises ValueError, on every host, where one does not see what the first one writes there."""
    if jax.process_count() == 1:
        return
    token = np.random.default_rng().integers(2**31, size=(), dtype=np.int32)
    token = int(share(token)[0])  # the first host's
    marker = folder / f".shared-{token}"
    with together():
        if is_first():
            write_whole(marker, str(token))
    seen = marker.exists() and marker.read_text() == str(token)
    blind = np.flatnonzero(~share(np.bool_(seen)))
    if is_first():
        marker.unlink()
    if blind.size:
        raise ValueError(
            f"The workdir {folder} is not shared: host {', '.join(map(str, blind))} of "
            f"{jax.process_count()} cannot read what host 0 wrote there. Give a --workdir that all "
            "hosts see: gs://bucket/path (pip install gcsfs), or a network file system."
        )
