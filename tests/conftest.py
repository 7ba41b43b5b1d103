"""Fixtures: the tiny golden models, and the demo models converted once for all tests."""

import json
import pathlib
from typing import NamedTuple

import numpy as np
import pytest

import models

GOLDEN = pathlib.Path(__file__).parent / "golden"
FAMILIES = ("tiny_llama31", "tiny_qwen2", "tiny_qwen3")
INDEX = json.loads((GOLDEN / "index.json").read_text())
CASES = {case["name"]: case for case in INDEX["cases"]}


class Case(NamedTuple):
    """One prompt of the golden set with what the published code computes from it."""

    model: models.LanguageModel
    preamble: list[int]
    documents: list[list[int]]
    query: list[int]
    arrays: dict[str, np.ndarray]


def load_case(name: str, model: models.LanguageModel) -> Case:
    arrays = np.load(GOLDEN / f"case_{name}.npz")
    documents = [arrays[f"doc{i}_ids"].tolist() for i in range(len(CASES[name]["doc_lens"]))]
    return Case(
        model,
        arrays["preamble_ids"].tolist(),
        documents,
        arrays["query_ids"].tolist(),
        arrays,
    )


@pytest.fixture(scope="session")
def tiny():
    """name -> the tiny golden model in float32, loaded once."""
    loaded = {}

    def get(name: str, **choices) -> models.LanguageModel:
        key = (name, *sorted(choices.items()))
        if key not in loaded:
            loaded[key] = models.load(str(GOLDEN / name), "float32", **choices)
        return loaded[key]

    return get


@pytest.fixture(scope="session")
def demo_folder():
    """(name, dtype) -> the converted folder of a demo model, fetched if it is not there yet."""

    def get(name: str, dtype: str = "float32") -> pathlib.Path:
        return models.find(name, dtype, models.default_cache_dir())

    return get
