"""Every method against what the published code computes: cache, first logits, greedy tokens."""

import numpy as np
import pytest

from kvpacket_jax.packets.adapter import Adapter
from tests.support.golden import CASES
from tests.support.methods import check, golden_case, run

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
        settings["opening"] = False
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
        actual = np.asarray(prepared.info["scores"])[length - len(expected) : length]
        np.testing.assert_allclose(actual, expected, atol=1e-5 * expected.max())
