"""Every method against what the published code computes: cache, first logits, greedy tokens."""

import numpy as np
import pytest
from conftest import CASES, load_case

from kvpacket_jax.adapter import Adapter
from kvpacket_jax.generate import generate
from kvpacket_jax.methods import METHODS, Request
from kvpacket_jax.prefill import prefill


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
    caches = [*prepared.context, *([prefilled.tail] if prepared.prefilled else [])]
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


SETTINGS = {  # a golden's label begins with the method's name
    "full_recompute": {},
    "no_recompute": {},
    "no_cache": {},
    "kv_packet": {},
    "cache_blend": {"recompute_ratio": "ratio"},
    "epic": {"recompute_tokens": "tokens"},
    "a3": {"recompute_ratio": "ratio"},
    "sink": {},
    "single_cache": {},
    "rand_recompute": {"recompute_ratio": "ratio", "seed": "seed"},
}


def labels():
    for case_name, case in CASES.items():
        for label, method in case["methods"].items():
            if method["method"] in SETTINGS and "compressor" not in method:
                yield pytest.param(case_name, label, id=f"{case_name}-{label}")


@pytest.mark.parametrize(("case_name", "label"), list(labels()))
def test_equals_published_code(tiny, case_name, label):
    case = golden_case(tiny, case_name)
    published = CASES[case_name]["methods"][label]
    name = published["method"]
    settings = {ours: published["kwargs"][theirs] for theirs, ours in SETTINGS[name].items()}
    if name == "kv_packet":
        settings["adapter"] = Adapter(case.arrays["header"], case.arrays["trailer"])
    prepared, cache, first, greedy = run(case, name, settings)
    assert prepared.query_start == case.arrays[f"{label}/query_pos"][0]
    check(case, label, cache, first, greedy)
    check_selection(case, label, prepared)


def check_selection(case, label: str, prepared):
    length = prepared.query_start
    if f"{label}/recomputed" in case.arrays:
        chosen = np.asarray(prepared.info["selected"])
        expected = case.arrays[f"{label}/recomputed"].tolist()
        assert chosen[chosen < length].tolist() == expected
    if f"{label}/scores" in case.arrays:
        expected = case.arrays[f"{label}/scores"]
        found = np.asarray(prepared.info["scores"])[length - len(expected) : length]
        np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())
