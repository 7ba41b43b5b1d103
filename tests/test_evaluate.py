"""The harness on a tiny model: costs against formulas, answers and KL against identities."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from conftest import load_case

from kvpacket_jax import evaluate, profiling
from kvpacket_jax.adapter import Adapter
from kvpacket_jax.buckets import Buckets, near
from kvpacket_jax.data import EncodedExample, Example, Question, Template
from kvpacket_jax.evaluate import Entry
from kvpacket_jax.generate import generate
from kvpacket_jax.methods import METHODS, Request
from models import kv_cache

TEMPLATE = Template(
    chat=False,
    opening="",
    document="{text}",
    wording={"question": "{text}"},
    reply={"question": ""},
    stop={"question": (" 0 ",)},
)


def decode(ids) -> str:
    return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def case(tiny):
    model = tiny("tiny_qwen2")
    words = types.SimpleNamespace(decode=decode, stop_ids=())
    return load_case("qwen2_A", dataclasses.replace(model, tokenizer=words))


@pytest.fixture(scope="module")
def request_(case):
    return Request(case.preamble, case.documents, case.query)


def entry(case, name: str, **settings) -> Entry:
    method = METHODS[name](**settings)
    return Entry(method, method.store(case.model, case.preamble, case.documents))


def matmul_flops(config, rows: int, slots: int) -> int:
    """Of `rows` rows that attend to `slots` slots, and one row's logits."""
    c = config
    heads = 2 * c.num_heads + 2 * c.num_kv_heads
    layer = c.dim * heads * c.head_dim + 3 * c.dim * c.mlp_dim
    attention = 2 * c.num_heads * c.head_dim * slots
    return 2 * (c.num_layers * rows * (layer + attention) + c.dim * c.vocab_size)


def test_full_recompute_costs_one_pass_over_documents_and_query(case, request_):
    full = entry(case, "full_recompute")
    cost = evaluate.cost(case.model, full, request_)
    rows = near(sum(map(len, case.documents)) + len(case.query))
    slots = rows + sum(p.cache.num_slots for p in full.stored)
    assert cost.flops_matmul == matmul_flops(case.model.config, rows, slots)
    query = Buckets().query(len(case.query))
    tail = Buckets().tail(query, 0)
    # The query alone has the same slots before it, and a tail with room for an answer.
    alone = matmul_flops(case.model.config, query, slots - query + tail)
    overhead = cost.flops_overhead / (cost.flops_matmul - alone)
    assert 1 < overhead < 1.3  # element-wise work is much of a tiny model's
    assert cost.flops_total > cost.flops_overhead > 0


def test_packets_cost_the_moves_beyond_the_query(case, request_):
    packets = entry(
        case, "kv_packet", adapter=Adapter(case.arrays["header"], case.arrays["trailer"])
    )
    cost = evaluate.cost(case.model, packets, request_)
    config = case.model.config
    moves = sum(
        profiling.count_flops(
            lambda cache: kv_cache.move(config, cache, np.int32(1)).k, packet.cache
        ).total
        for packet in packets.stored
    )
    marks = sum(packet.cache.num_slots for packet in packets.stored)  # their positions too
    # Beyond them only the arithmetic of where slices start.
    assert moves + marks <= cost.flops_overhead < 1.05 * (moves + marks)
    # The rotation itself: 3 operations a number, and its angles.
    numbers = marks * config.num_layers * config.num_kv_heads * config.head_dim
    assert moves >= 3 * numbers


def test_no_cache_has_no_overhead(case, request_):
    cost = evaluate.cost(case.model, entry(case, "no_cache"), request_)
    assert cost.flops_overhead == 0 < cost.flops_matmul < cost.flops_total


@pytest.mark.parametrize("name", METHODS)
def test_costs_need_shapes_only_and_agree_with_xla(case, request_, name):
    full = entry(case, name)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (case.model.params, full.stored)
    )
    model = dataclasses.replace(case.model, params=abstract[0])
    cost = evaluate.cost(model, Entry(full.method, abstract[1]), request_)
    assert cost == evaluate.cost(case.model, full, request_)
    assert cost.xla_flops == pytest.approx(cost.flops_total, rel=0.05)


@pytest.mark.parametrize("name", ["full_recompute", "kv_packet"])
def test_costs_do_not_depend_on_how_layers_are_walked(tiny, case, request_, name):
    scanned = tiny("tiny_qwen2", scan_layers=True, query_block=16)
    method = METHODS[name]()
    stored = method.store(scanned, case.preamble, case.documents)
    cost = evaluate.cost(scanned, Entry(method, stored), request_)
    plain = evaluate.cost(case.model, entry(case, name), request_)
    assert cost.xla_flops == plain.xla_flops


@pytest.fixture(scope="module")
def example(case):
    encoded = EncodedExample(case.preamble, case.documents, [case.query, case.query[2:]])
    questions = (Question("first", ("1",)), Question("second", ("2",)))
    return encoded, questions


def test_shared_answers_equal_those_of_single_requests(case, example):
    encoded, questions = example
    full = entry(case, "full_recompute")
    found = evaluate.answer(case.model, full, encoded, questions, TEMPLATE, new_tokens=8)
    for query, text, log_probs in zip(encoded.questions, *found, strict=True):
        alone = Request(case.preamble, case.documents, query)
        prepared = full.method.prepare(case.model, full.stored, alone, new_tokens=8)
        first = np.asarray(jax.nn.log_softmax(prepared.prefilled.logits[0]))
        np.testing.assert_allclose(log_probs, first, atol=1e-3)
        ids = generate(case.model, prepared.context, prepared.prefilled, 8)[0]
        assert text == decode(ids)


def test_kl_is_zero_against_itself_and_positive_otherwise(case, example):
    full, bare = (
        evaluate.answer(case.model, entry(case, name), *example, TEMPLATE, 4).log_probs
        for name in ("full_recompute", "no_recompute")
    )
    assert (evaluate.kl(full, full) == 0).all() and (evaluate.kl(full, bare) > 0).all()
    p, q = np.exp(full.astype(np.float64)), np.exp(bare.astype(np.float64))
    np.testing.assert_allclose(
        evaluate.kl(full, bare), (p * np.log(p / q)).sum(-1), rtol=1e-3, atol=1e-5
    )


def test_compare_gives_a_row_for_every_method_and_question(case, example, monkeypatch):
    encoded, questions = example
    monkeypatch.setattr(evaluate, "encode_example", lambda *_: encoded)
    texts = Example("tiny", ("",) * len(case.documents), questions)
    methods = {name: METHODS[name]() for name in METHODS}
    rows = evaluate.compare(case.model, methods, texts, TEMPLATE, new_tokens=4, runs=1)
    assert [(r.method, r.question) for r in rows] == [
        (m, q.text) for m in methods for q in questions
    ]
    for row in rows:
        assert row.ttft_s > 0 and row.load_s == 0 and row.prefill_s > 0
        assert (row.compose_s == 0) == (row.method == "full_recompute")
        assert (row.kl == 0) == (row.method == "full_recompute")
