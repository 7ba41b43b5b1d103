"""The data sets by name, and the prompt templates that turn their examples into token ids."""

import importlib
import os
from collections.abc import Sequence
from typing import Any

import platformdirs

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
    "options",
]

# name -> the module here whose source(split, data_dir, **options) returns something with a length
# whose items are Examples. A new data set is one file and one line. Imported when first asked for:
# who answers from packets needs no tensorflow-datasets.
DATASETS = {
    "biography": "synthetic.biography",
    "niah": "synthetic.niah",
    "ruler": "synthetic.ruler",
    "sheets": "synthetic.sheets",
    "wikipedia": "published.wikipedia",
    "everyday": "own.everyday",
    "own_docs": "own.own_docs",
    "corpus": "own.corpus",
    "hotpot_qa": "published.hotpot_qa",
    "musique": "published.musique",
    "jsonl": "own.jsonl",
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
    module = importlib.import_module(f"kvpacket_jax.data.{DATASETS[name]}")
    return module.source(split, data_dir, **options)


def options(entry) -> dict[str, Any]:
    """Returns `entry.options` of a config for `load`, without those that are not set (None).

    Ranges come back from JSON as lists.
    """
    return {
        k: tuple(v) if isinstance(v, list) else v for k, v in entry.options.items() if v is not None
    }
