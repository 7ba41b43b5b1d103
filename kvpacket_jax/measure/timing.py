"""How long calls take: wall-clock seconds, sides of a comparison interleaved in one process."""

import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    runs: int = 3,
    warmup: int = 1,
    before: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, list[float]]:
    """Times calls against each other in one process: A B C A B C.

    A call ends when all arrays it returns are ready. `warmup` rounds, which compile, come before
    the `runs` timed ones.

    Args:
      before: by the names of calls, what is done before each of their runs, outside the clock.

    Returns:
      Each name's wall-clock times in seconds, in order.

    Raises:
      ValueError: `runs` or `warmup` is below 1: a first call times the compiler.
    """
    if runs < 1 or warmup < 1:
        raise ValueError(
            f"Timing needs runs >= 1 and warmup >= 1, got {runs} and {warmup}: a first call times "
            "the compiler."
        )
    seconds = {name: [] for name in calls}
    for _ in range(warmup + runs):
        for name, call in calls.items():
            if before and name in before:
                before[name]()
            seconds[name].append(call_seconds(call))
    return {name: of_call[warmup:] for name, of_call in seconds.items()}


def call_seconds(call: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call, until all arrays it returns are ready."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The values that a quarter and three quarters of them lie below, interpolated."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)


def ratio(seconds: Sequence[float], baseline: Sequence[float]) -> float:
    """The median, over rounds, of a side's seconds divided by the baseline's in the same round."""
    return statistics.median(map(operator.truediv, seconds, baseline))
