"""Means of adapters that were trained from the same parts: each run's change, times its share."""

from collections.abc import Sequence

import numpy as np

from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from models import low_rank


def average(adapters: Sequence[Adapter], shares: Sequence[float], rank: int) -> Adapter:
    """An adapter whose writer's change is the weighted sum of the adapters', cut to `rank`.

    A run improves what it trains on and drifts elsewhere; the mean of several keeps most of the
    first and little of the second (model soups, arXiv 2203.05482, of low-rank changes). The other
    parts must be the same in all, and stay. Rounded as adapters are saved.

    Raises ValueError for shares that are not as many, for one without a writer, and where other
    parts differ.
    """
    if len(adapters) != len(shares):
        raise ValueError(f"{len(adapters)} adapters have {len(shares)} shares: give one for each.")
    first = adapters[0]
    for i, adapter in enumerate(adapters, 1):
        if adapter.writer is None:
            raise ValueError(f"Adapter {i} has no writer: only writers can be averaged.")
        if differing := _differing(adapter, first):
            raise ValueError(
                f"The {differing} of adapter {i} is another than the first's: only writers are "
                "averaged, over parts that are the same."
            )
    writer = low_rank.weighted_sum([a.writer for a in adapters], shares, rank)
    return adapter_lib.rounded(first._replace(writer=writer))


def _differing(one: Adapter, other: Adapter) -> str:
    """The first part besides the writer that is not the same in both."""
    arrays, others = (adapter_lib.to_arrays(a._replace(writer=None)) for a in (one, other))
    for name in sorted(arrays.keys() | others.keys()):
        x, y = arrays.get(name), others.get(name)
        if x is None or y is None or x.shape != y.shape or not np.array_equal(x, y):
            return name.partition(".")[0]
    return ""
