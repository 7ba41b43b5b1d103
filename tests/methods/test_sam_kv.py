"""SAM-KV: the published code's choices, and what it equals when everything is kept."""

import jax
import numpy as np
import pytest

from kvpacket_jax.measure.request import Entry
from kvpacket_jax.measure.work import count_work
from kvpacket_jax.methods import METHODS, Request
from models import rope
from tests.support.golden import CASES
from tests.support.methods import check, golden_case, run

LABELS = [
    pytest.param(case_name, label, id=f"{case_name}-{label}")
    for case_name, case in CASES.items()
    for label, method in case["methods"].items()
    if method["method"] == "sam_kv"
]


def settings(kwargs: dict) -> dict:
    first, *more = kwargs["stable_layers"]
    return {
        "initial": kwargs["num_initial_tokens"],
        "local": kwargs["num_local_tokens"],
        "block": kwargs["block_size"],
        "theta": kwargs["fuse_theta"],
        "first_layer": first,
        "num_layers": 1 + len(more),
        "published": True,
    }


@pytest.mark.parametrize(("case_name", "label"), LABELS)
def test_equals_published_code(tiny, case_name, label):
    case = golden_case(tiny, case_name)
    published = CASES[case_name]["methods"][label]
    prepared, cache, first, greedy = run(case, "sam_kv", settings(published["kwargs"]))
    assert prepared.query_start == case.arrays[f"{label}/query_pos"][0]
    (context,) = prepared.context
    kept = np.asarray(context.positions[0])[np.asarray(context.valid[0])]
    assert kept.tolist() == case.arrays[f"{label}/cache_pos"].tolist()
    generic = case.arrays[f"{label}/generic_query"]
    np.testing.assert_allclose(prepared.info["generic"], generic, atol=2e-4)
    share = case.arrays[f"{label}/p"]
    np.testing.assert_allclose(prepared.info["share"][: len(share)], share, atol=2e-3)
    check(case, label, cache, first, greedy)


def test_the_published_quirks_are_off_by_default(tiny):
    """The shares of each chunk's blocks, again from keys and mean queries."""
    label = "sam_kv_small"
    case = golden_case(tiny, "llama31_A")
    kwargs = CASES["llama31_A"]["methods"][label]["kwargs"]
    chosen = settings(kwargs) | {"published": False}
    prepared, *_ = run(case, "sam_kv", chosen)
    _, (keys, _), *_ = run(case, "no_recompute", {})
    lengths = [len(case.preamble), *map(len, case.documents)]
    starts = np.cumsum([0, *lengths[:-1]])
    config = case.model.config
    local = case.arrays[f"{label}/doc_query"].astype(np.float64)  # [P, J, N, H], from position 0
    half = config.head_dim // 2
    turn = np.exp(1j * np.outer(starts, rope.frequencies(config.rope, config.head_dim)))
    pairs = (local[..., :half] + 1j * local[..., half:]) * turn[:, None, None]
    moved = np.concatenate([pairs.real, pairs.imag], axis=-1)
    generic = np.asarray(prepared.info["generic"], np.float64)
    cosine = (moved * generic).sum(-1) / np.linalg.norm(moved, axis=-1)
    weighted = moved * np.abs(cosine / np.linalg.norm(generic, axis=-1))[..., None]
    personal = (weighted.sum(0) - weighted) / (len(lengths) - 1) + generic
    N, K = config.num_heads, config.num_kv_heads
    grouped = personal.reshape(*personal.shape[:2], K, N // K, -1).mean(3)
    a, b, block = chosen["initial"], chosen["local"], chosen["block"]
    clipped = 0
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        for j, layer in enumerate(kwargs["stable_layers"]):
            chunk = keys[layer][:, start : start + length]
            scores = np.einsum("ksh,kh->s", chunk, grouped[i, j])
            middle, ends = scores[a : length - b], np.append(scores[:a], scores[length - b :])
            blocks = [middle[s : s + block].mean() for s in range(0, len(middle), block)]
            share = (max(blocks) - ends.mean()) / (max(blocks) - min(blocks) + 1e-8)
            clipped += not 0 <= share <= 1
            actual = prepared.info["share"][i, j]
            np.testing.assert_allclose(actual, np.clip(share, 0, 1), atol=2e-3)
    assert clipped


def test_with_theta_0_what_is_kept_is_what_was_cached(tiny):
    case = golden_case(tiny, "qwen2_A")
    kwargs = CASES["qwen2_A"]["methods"]["sam_kv_mid"]["kwargs"]
    prepared, (k, v), *_ = run(case, "sam_kv", settings(kwargs) | {"theta": 0.0})
    _, cached, *_ = run(case, "no_recompute", {})
    (context,) = prepared.context
    kept = np.asarray(context.positions[0])[np.asarray(context.valid[0])]
    assert 0 < len(kept) < prepared.query_start
    for actual, expected in zip((k, v), cached, strict=True):
        np.testing.assert_allclose(actual[:, :, : len(kept)], expected[:, :, kept], atol=2e-5)


def test_costs_are_those_of_the_tokens_it_keeps(tiny):
    case = golden_case(tiny, "qwen2_A")
    kwargs = CASES["qwen2_A"]["methods"]["sam_kv_mid"]["kwargs"]
    method = METHODS["sam_kv"](**settings(kwargs))
    request = Request(case.preamble, case.documents, case.query)
    stored = method.store(case.model, case.preamble, case.documents)
    kept = int(method.prepare(case.model, stored, request).info["kept"])
    resolved = method.resolved(case.model, stored, request)
    assert resolved.num_kept == kept < sum(map(len, (case.preamble, *case.documents)))
    found = count_work(case.model, Entry(method, stored), request)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored)
    assert found == count_work(case.model, Entry(resolved, shapes), request)
    # Where nothing can be read, as if all were kept.
    assert found.flops_total < count_work(case.model, Entry(method, shapes), request).flops_total
