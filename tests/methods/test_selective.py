"""Methods that recompute some tokens: what they equal with all of them and with none."""

import jax
import numpy as np
import pytest

from kvpacket_jax.methods import METHODS, Request
from kvpacket_jax.methods.recompute import row_bucket
from kvpacket_jax.packets.buckets import COARSE, Buckets
from kvpacket_jax.packets.prefill import prefill
from tests.support.methods import golden_case, run, visible

EVERYTHING = {
    "cache_blend": {"ratio": 1.0},
    "epic": {"tokens": 99},
    "a3": {"ratio": 1.0},
    "rand_recompute": {"ratio": 1.0},
    "infoflow": {"ratio": 1.0},
    # The tiny documents are shorter than what is always kept.
    "sam_kv": {"theta": 1.0},
}
NOTHING = {"epic": {"tokens": 0}, "a3": {"ratio": 0.0}, "rand_recompute": {"ratio": 0.0}}
# A ratio above 1 in percent is the likeliest mistake.
WRONG = [
    ("cache_blend", {"ratio": 30.0}, "from 0 to 1; found 30.0"),
    ("a3", {"ratio": -0.1}, "from 0 to 1; found -0.1"),
    ("rand_recompute", {"ratio": 30.0}, "from 0 to 1"),
    ("epic", {"tokens": -1}, "found -1"),
    ("infoflow", {"ratio": 2.0}, "from 0 to 1"),
    ("infoflow", {"leading": -1}, "leading and trailing are 0 or more"),
    ("sam_kv", {"theta": 1.5}, "theta is a share, from 0 to 1; found 1.5"),
    ("sam_kv", {"local": 0}, "local, block and num_layers are 1 or more"),
]


@pytest.fixture(params=["qwen2_A", "llama31_B"])  # the second has no preamble
def case(tiny, request):
    return golden_case(tiny, request.param)


def same_answer(actual, expected):
    (_, cache, first, greedy), (_, other_cache, other_first, other_greedy) = actual, expected
    for a, b in zip(cache, other_cache, strict=True):
        length = min(a.shape[2], b.shape[2])
        np.testing.assert_allclose(a[:, :, :length], b[:, :, :length], atol=2e-4)
    np.testing.assert_allclose(first, other_first, atol=1e-3)
    assert greedy == other_greedy


@pytest.mark.parametrize("name", EVERYTHING)
def test_everything_recomputed_is_full_recompute(case, name):
    actual = run(case, name, EVERYTHING[name])
    same_answer(actual, run(case, "full_recompute", {}))


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_recomputed_is_no_recompute(case, name):
    same_answer(run(case, name, NOTHING[name]), run(case, "no_recompute", {}))


@pytest.mark.parametrize("name", [n for n in EVERYTHING if n != "infoflow"])
def test_the_query_run_again_over_the_context_gives_the_same(case, name):
    method = METHODS[name]()
    request = Request(case.preamble, case.documents, case.query)
    stored = method.store(case.model, case.preamble, case.documents)
    prepared = method.prepare(case.model, stored, request)
    again = prefill(case.model, prepared.context, [case.query], prepared.query_start)
    np.testing.assert_allclose(prepared.prefilled.logits, again.logits, atol=1e-3)
    np.testing.assert_array_equal(prepared.prefilled.positions, again.positions)
    assert prepared.prefilled.slot == again.slot
    for part in "kv":
        actual, expected = (visible(p.tail, part) for p in (prepared.prefilled, again))
        np.testing.assert_allclose(actual, expected, atol=2e-4)


@pytest.mark.parametrize("name", [*EVERYTHING, "sink"])
def test_a_request_of_similar_size_compiles_nothing(tiny, name):
    model, method = tiny("tiny_qwen2"), METHODS[name]()

    def prepare(lengths, query: int):
        rng = np.random.default_rng(query)
        *parts, question = (rng.integers(3, 300, n).tolist() for n in (*lengths, query))
        request = Request(parts[0], parts[1:], question)
        stored = method.store(model, request.preamble, request.documents)
        jax.block_until_ready(stored)
        heard.clear()
        return jax.block_until_ready(method.prepare(model, stored, request)[0])

    heard = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            heard.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        prepare((5, 11, 17, 9), 6)
        prepare((6, 12, 18, 10), 7)
        assert heard == []
        jax.jit(lambda: 1)()  # what does compile is heard
        assert heard != []
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(("name", "settings", "error"), WRONG)
def test_settings_that_mean_nothing_are_refused(name, settings, error):
    with pytest.raises(ValueError, match=error):
        METHODS[name](**settings)


@pytest.mark.parametrize(("name", "settings"), [("epic", {}), ("infoflow", {"reorder": True})])
def test_caches_of_other_documents_are_refused(tiny, name, settings):
    method, model = METHODS[name](**settings), tiny("tiny_qwen2")
    stored = method.store(model, [], [[5, 6, 7], [8, 9]])
    with pytest.raises(ValueError, match=r"\[3, 2\] tokens long.*\[2, 3\]: they were made of"):
        method.prepare(model, stored, Request([], [[8, 9], [5, 6, 7]], [4]))


def test_buckets_pad_little_and_fit_each_other():
    for n in range(1, 9000):
        fine, coarse = Buckets(), COARSE
        assert n <= row_bucket(n, fine) <= max(32, 8 * -(-n // 8), 1.1 * n)
        assert n <= row_bucket(n, coarse) <= max(32, 8 * -(-n // 8), 1.25 * n)
        assert n <= fine.recomputed_context(n) <= max(512, 1.125 * n)
        assert n <= coarse.recomputed_context(n) <= max(512, 1.5 * n)
        for buckets in (fine, coarse):
            assert buckets.rows(n) <= buckets.recomputed_context(
                n
            )  # rows of a whole context fit its slots
    sizes = {buckets: {buckets.rows(n) for n in range(512, 4097)} for buckets in (fine, coarse)}
    assert len(sizes[coarse]) < len(sizes[fine]) / 2
