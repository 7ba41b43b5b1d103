"""Runs a method on a golden case, and holds it to what the published code computes."""

import numpy as np

from kvpacket_jax.methods import METHODS, Request
from kvpacket_jax.packets.generate import generate
from kvpacket_jax.packets.prefill import prefill
from models import paged
from tests.support.golden import CASES, load_case


def golden_case(tiny, name: str):
    """A case with its model: llama's layers are scanned, the others' walked in a loop."""
    model = CASES[name]["model"]
    return load_case(name, tiny(model, scan_layers=model == "tiny_llama31"))


def run(case, name: str, settings: dict):
    method = METHODS[name](**settings)
    request = Request(case.preamble, case.documents, case.query)
    stored = method.store(case.model, case.preamble, case.documents)
    prepared = method.prepare(case.model, stored, request, new_tokens=8)
    prefilled = prepared.prefilled or prefill(
        case.model, prepared.context, [case.query], prepared.query_start, 8
    )
    caches = [paged.ready(case.model.config, c) for c in prepared.context]
    caches += [prefilled.tail] if prepared.prefilled else []
    cache = (
        [np.concatenate([visible(c, part) for c in caches], 2) for part in "kv"] if caches else None
    )
    first = np.asarray(prefilled.logits[0])
    greedy = generate(case.model, prepared.context, prefilled, 8, stop_ids=())[0]
    return prepared, cache, first, greedy


def visible(cache, part: str) -> np.ndarray:
    """Keys or values of the valid slots, as the goldens lay them out: [L, K, S, H]."""
    arrays = np.stack([np.asarray(a) for a in getattr(cache, part)])
    return arrays[:, 0][:, np.asarray(cache.valid[0])].transpose(0, 2, 1, 3)


def check(case, label: str, cache, first, greedy, tolerance=1e-3):
    arrays = case.arrays
    if f"{label}/cache_k" in arrays:
        length = arrays[f"{label}/cache_k"].shape[2]
        for part, found in zip("kv", cache, strict=True):
            np.testing.assert_allclose(
                found[:, :, :length], arrays[f"{label}/cache_{part}"], atol=2e-4
            )
    np.testing.assert_allclose(first, arrays[f"{label}/first_logits"], atol=tolerance)
    assert greedy == arrays[f"{label}/greedy"].tolist()
