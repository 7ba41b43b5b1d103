"""Every method against what the published code computes: cache, first logits, greedy tokens."""

import jax
import numpy as np
import pytest
from conftest import CASES, load_case

from kvpacket_jax.adapter import Adapter
from kvpacket_jax.generate import generate
from kvpacket_jax.methods import METHODS, Request
from kvpacket_jax.prefill import prefill


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
    arrays = np.stack([np.asarray(a) for a in jax.tree.leaves(getattr(cache, part))])
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


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("name", ["full_recompute", "no_recompute", "no_cache", "kv_packet"])
def test_equals_published_code(tiny, case_name, name):
    case = load_case(case_name, tiny(CASES[case_name]["model"]))
    settings = {}
    if name == "kv_packet":
        settings["adapter"] = Adapter(case.arrays["header"], case.arrays["trailer"])
    prepared, cache, first, greedy = run(case, name, settings)
    assert prepared.query_start == case.arrays[f"{name}/query_pos"][0]
    check(case, name, cache, first, greedy)
