"""The golden set: tiny models, and what the published code computes from them."""

import json
import pathlib
from typing import NamedTuple

import numpy as np

import models

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


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
