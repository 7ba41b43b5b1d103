"""The data sets by name, and how a program reads them: shuffled, mixed, resumed exactly."""

import os
from collections.abc import Sequence
from typing import Any

import grain
import platformdirs

from kvpacket_jax.data import biography, jsonl, niah, wikipedia
from kvpacket_jax.data.examples import FORMS, Example, Question
from kvpacket_jax.data.templates import TEMPLATES, EncodedExample, Template, encode_example

__all__ = [
    "DATASETS",
    "FORMS",
    "TEMPLATES",
    "EncodedExample",
    "Example",
    "Question",
    "Template",
    "encode_example",
    "load",
    "mixture",
    "options",
    "pipeline",
]

# name -> source(split, data_dir, **options), which returns something with a length whose items
# are Examples. A new data set is one file with such a function and one line here.
DATASETS = {
    "biography": biography.source,
    "niah": niah.source,
    "wikipedia": wikipedia.source,
    "jsonl": jsonl.source,
}


def load(
    name: str, split: str, data_dir: str | os.PathLike | None = None, **options
) -> Sequence[Example]:
    """Returns random access to the examples of a split ("train", "test[:10%]").

    Generated sets are written on first use to `data_dir` (by default in the user's cache
    folder), each combination of options to a folder of its own. Raises ValueError for a name or
    split that does not exist, TypeError for an option that the set does not have.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    data_dir = data_dir or platformdirs.user_cache_path("kvpacket_jax") / "data"
    return DATASETS[name](split, data_dir, **options)


def options(entry) -> dict[str, Any]:
    """Returns `entry.options` of a config for `load`: ranges come back from JSON as lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in entry.options.items()}


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
