"""What methods declare of themselves is so: buckets, shared contexts, adapters, seeds."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from kvpacket_jax.methods import METHODS, Method, Request
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import COARSE, Buckets
from kvpacket_jax.packets.packet import build_packets
from kvpacket_jax.packets.prefill import prefill
from tests.support.methods import golden_case

OWN = Buckets(queries=(40,), contexts=(320, 640), min_packet=32, soft_tokens=8, new_tokens=33)
SETTINGS = [(name, {}) for name in METHODS] + [("infoflow", {"reorder": True})]


def first_logits(case, method):
    request = Request(case.preamble, case.documents, case.query)
    stored = method.store(case.model, case.preamble, case.documents)
    prepared = method.prepare(case.model, stored, request, new_tokens=4)
    prefilled = prepared.prefilled or prefill(
        case.model, prepared.context, [case.query], prepared.query_start, 4, method.buckets
    )
    return np.asarray(prefilled.logits[0])


@pytest.mark.parametrize("own", [OWN, pytest.param(COARSE, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_buckets_reach_the_whole_method_and_change_no_answer(
    tiny, monkeypatch, name, settings, own
):
    case = golden_case(tiny, "qwen2_A")
    expected = first_logits(case, METHODS[name](**settings))
    calls = []
    for size in ("query", "tail", "packet", "context", "build", "rows", "recomputed_context"):

        def spy(self, *args, original=getattr(Buckets, size)):
            calls.append(self)
            return original(self, *args)

        monkeypatch.setattr(Buckets, size, spy)
    actual = first_logits(case, METHODS[name](**settings, buckets=own))
    # single_cache pads its one packet less; all else of it comes from the buckets it was given.
    assert calls and all(b.queries == own.queries for b in calls)
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_methods_declare_what_they_do(tiny):
    case = golden_case(tiny, "llama31_A")
    request = Request(case.preamble, case.documents, case.query)
    assert [n for n, m in METHODS.items() if m.reads_packets] == [
        "kv_packet",
        "primed",
        "no_recompute",
    ]
    roles = {n: m.adapter_role for n, m in METHODS.items() if m.adapter_role}
    assert roles == {"kv_packet": "adapter", "primed": "primer"}
    for name, cls in METHODS.items():
        method = cls()
        assert method.adapter is None
        assert (method.reseeded("a") != method.reseeded("b")) == (name == "rand_recompute")
        stored = method.store(case.model, case.preamble, case.documents)
        shared = method.shared_context(case.model, stored, request)
        assert (shared is not None) == method.shares_context
        if method.reads_packets:
            packets = build_packets(case.model, None, request.chunks)
            again = method.arrange(case.model, packets)
            jax.tree.map(np.testing.assert_array_equal, again, stored)
            empty = Request((), (), ())
            assert method.prepare(case.model, stored, empty).query_start == shared[1]


def test_methods_of_one_recipe_build_the_same_packets(tiny):
    case = golden_case(tiny, "qwen2_A")
    built = {}
    for name, settings in [*SETTINGS, ("no_recompute", {"buckets": OWN})]:
        method = METHODS[name](**settings)
        packets = method.build(case.model, case.preamble, case.documents)
        jax.tree.map(
            np.testing.assert_array_equal, packets, built.setdefault(method.recipe, packets)
        )
    # Bare packets in two sizes, the preamble alone, all as one, packets after the preamble.
    assert len(built) == 5
    one, other = (adapter_lib.empty(case.model.config.dim) for _ in range(2))
    further = [{"compress": "knorm", "keep": 0.5}, {"adapter": one}, {"adapter": other}]
    recipes = {METHODS["kv_packet"](**settings).recipe for settings in further}
    assert len(recipes) == 3 and not recipes & set(built)


@pytest.mark.parametrize("family", ["tiny_llama31", "tiny_qwen2"])
@pytest.mark.parametrize("preamble", [(5, 6, 7), ()])
def test_the_first_document_is_as_the_full_context_has_it(tiny, family, preamble):
    """So a single one is answered from as if it had been read in full."""
    model = tiny(family)
    tokens = np.random.default_rng(0).normal(0, 1, (2, 4, model.config.dim)).astype(np.float32)
    method = METHODS["kv_packet"](adapter=Adapter(*tokens))
    papers, full = dataclasses.replace(method, opening=False), METHODS["full_recompute"]()
    two = list(range(40, 52)), list(range(60, 67))

    def apart(method, documents) -> float:
        """How far the first logits are from the full context's."""
        case = SimpleNamespace(model=model, preamble=preamble, documents=documents, query=[9, 8])
        return abs(first_logits(case, method) - first_logits(case, full)).max()

    lengths = [packet.length for packet in method.build(model, preamble, two)[bool(preamble) :]]
    assert lengths == [12, 7 + 8]  # the other one is wrapped
    assert apart(method, two[:1]) < 1e-4
    assert min(apart(method, two), apart(papers, two[:1])) > 1e-2


@pytest.mark.parametrize("opening", [True, False])
def test_packets_in_several_orders_are_those_of_each(tiny, opening):
    model = tiny("tiny_llama31")
    tokens = np.random.default_rng(0).normal(0, 1, (2, 4, model.config.dim)).astype(np.float32)
    method = METHODS["kv_packet"](adapter=Adapter(*tokens), opening=opening)
    documents = [list(range(40 + 9 * i, 48 + 10 * i)) for i in range(3)]
    orders = [(2, 0, 1), (0, 1, 2), (2, 1, 0)]
    orders = [[documents[i] for i in order] for order in orders]
    made = list(method.build_orders(model, (5, 6), orders))
    assert made[0][-1] is made[2][-2]  # built once
    for order, packets in zip(orders, made, strict=True):
        expected = method.build(model, (5, 6), order)
        assert [p.manifest.tokens for p in packets] == [p.manifest.tokens for p in expected]
        assert [p.length for p in packets] == [p.length for p in expected]
        for one, other in zip(jax.tree.leaves(packets), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_what_is_stored_is_what_build_orders_and_arrange_make():
    """An evaluation calls these two, everyone else `store`."""
    for cls in METHODS.values():
        assert cls.store is Method.store and cls.build is Method.build


def test_the_preamble_is_the_first_chunk_unless_it_is_empty():
    request = Request([1, 2], [[3], [4]], [5])
    assert (request.chunks, request.first_document) == ([[1, 2], [3], [4]], 1)
    request = Request([], [[3], [4]], [5])
    assert (request.chunks, request.first_document) == ([[3], [4]], 0)


def test_full_recompute_says_which_slots_hold_documents(tiny):
    case = golden_case(tiny, "qwen2_A")
    method = METHODS["full_recompute"]()
    request = Request(case.preamble, case.documents, case.query)
    stored = method.store(case.model, case.preamble, case.documents)
    prepared = method.prepare(case.model, stored, request)
    query_rows = method.buckets.query(len(case.query))
    assert prepared.document_slots + query_rows == prepared.prefilled.slot


def test_methods_run_a_model_with_shared_layers_or_say_why_not(tiny):
    """Recomputing everything is full_recompute there too; by keys that are not there none goes."""

    def case_of(layers: str):
        return golden_case(functools.partial(tiny, shared_layers=layers), "qwen2_A")

    last = case_of("3:4")
    expected = first_logits(last, METHODS["full_recompute"]())
    for name in METHODS:
        if name in ("sam_kv", "infoflow"):
            with pytest.raises(ValueError, match="layer 3 has none, for it shares"):
                METHODS[name]().check(last.model)
        else:
            METHODS[name]().check(last.model)
            assert np.isfinite(first_logits(last, METHODS[name]())).all()
    for name, settings in (("cache_blend", {"ratio": 1.0}), ("epic", {"tokens": 1000})):
        actual = first_logits(last, METHODS[name](**settings))
        np.testing.assert_allclose(actual, expected, atol=1e-3)
    with pytest.raises(ValueError, match="layer 1 has none, for it shares"):
        METHODS["cache_blend"]().check(case_of("1:2").model)
    with pytest.raises(ValueError, match="layer 1 has none, for it shares"):
        METHODS["sam_kv"](first_layer=0, num_layers=1).check(case_of("1:2").model)
