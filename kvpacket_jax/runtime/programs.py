"""Compiled programs: in memory, where a CPU has room for some hundreds, and many at a time."""

import concurrent.futures
import ctypes
import os
import pathlib
import sys
from collections.abc import Callable, Iterable

import jax

import models

MAPS = pathlib.Path("/proc/self/maps")
LIMIT = pathlib.Path("/proc/sys/vm/max_map_count")


def keep(cache_dir: str | os.PathLike | None = None) -> None:
    """Has jax keep compiled programs beside the models, unless it keeps them somewhere already.

    Args:
      cache_dir: where models are kept; the user's cache folder if None.
    """
    if not jax.config.jax_compilation_cache_dir:
        folder = pathlib.Path(cache_dir or models.default_cache_dir()).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))


def make_room(share: float = 0.7) -> bool:
    """Forgets all compiled programs if the process has little room left for more; whether it did.

    XLA for CPUs maps memory some hundreds of times for each program, and Linux allows a process
    65,530 maps by default: one too many ends it. What is needed again comes from the compilation
    cache, or is compiled anew. For long runs to call now and then, where nothing runs.

    Args:
      share: of the maps that Linux allows; with more of them there is little room.
    """
    if jax.default_backend() != "cpu" or not (MAPS.exists() and LIMIT.exists()):
        return False
    with MAPS.open("rb") as file:
        maps = sum(1 for _ in file)
    if maps < share * int(LIMIT.read_text()):
        return False
    jax.clear_caches()
    return True


def side_by_side(tasks: Iterable[Callable[[], object]]) -> list:
    """Calls functions that each run a new program, so that a GPU's programs compile in parallel.

    Such a machine has many cores, and compiling takes one of them for each program. A CPU has no
    core to spare while it runs, and devices that compute together must be given everything in one
    order, which threads do not keep: there, nothing is called.

    Returns:
      What each function returned, computed; an empty list where nothing was called.
    """
    if jax.default_backend() == "cpu" or jax.device_count() > 1:
        return []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = [pool.submit(task) for task in tasks]
        return jax.block_until_ready([future.result() for future in futures])


def give_back() -> None:
    """Gives the system back the memory that compiling used.

    glibc keeps what is freed in an arena for each thread: some GB after the tens of programs of a
    training run. For long runs on a CPU, between steps of seconds; elsewhere nothing happens.
    """
    if jax.default_backend() == "cpu" and sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
