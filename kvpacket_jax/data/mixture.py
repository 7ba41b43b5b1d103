"""Data sets shuffled, mixed and resumed exactly."""

from collections.abc import Sequence

import grain

from kvpacket_jax.data.examples import Example


def pipeline(
    source: Sequence[Example], seed: int, num_epochs: int | None = None
) -> grain.MapDataset:
    """Returns `source` shuffled, anew in each epoch, and repeated (for ever by default).

    Item i depends on the seed and i alone, so `dataset[step]` is a resume by itself.
    """
    return grain.MapDataset.source(source).shuffle(seed).repeat(num_epochs)


def mixture(
    sources: Sequence[Sequence[Example]], weights: Sequence[float], seed: int
) -> grain.MapDataset:
    """Returns an endless mixture with `weights[i]` of `sources[i]`, each shuffled apart.

    Raises ValueError unless there is one positive weight for every source.
    """
    if len(sources) != len(weights) or not sources or min(weights) <= 0:
        raise ValueError(
            f"{len(sources)} data sets and weights {list(weights)}: give each a positive weight"
        )
    parts = [pipeline(source, seed + i) for i, source in enumerate(sources)]
    return grain.MapDataset.mix(parts, weights)
