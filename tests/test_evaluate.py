"""Answers and KL on a tiny model against identities."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from conftest import load_case

from kvpacket_jax import evaluate
from kvpacket_jax.cost import Entry
from kvpacket_jax.data import EncodedExample, Example, Question, Template
from kvpacket_jax.generate import generate
from kvpacket_jax.methods import METHODS, Request

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


def entry(case, name: str, **settings) -> Entry:
    method = METHODS[name](**settings)
    return Entry(method, method.store(case.model, case.preamble, case.documents))


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
