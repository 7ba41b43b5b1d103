"""Microbatches: the teacher's answers, weights of wrong ones, orders of documents, best kinds."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import models
from kvpacket_jax import teacher
from kvpacket_jax.data import TEMPLATES, Example, Question
from kvpacket_jax.train import batches, validation
from kvpacket_jax.train.batches import Teaching
from kvpacket_jax.train.shapes import Shape

TEMPLATE = TEMPLATES["completion"]
SHAPE = Shape(16, documents=3, tokens=16, questions=3, row=32, new_tokens=4, answers=12)
DOCUMENTS = ("One here.", "Two there.")


@pytest.fixture(scope="module")
def model(byte_model):
    return models.load(str(byte_model), "float32")


def example(name: str, *answers: tuple[str, ...]) -> Example:
    questions = tuple(Question(f"Q{i}?", golden) for i, golden in enumerate(answers))
    return Example(name, DOCUMENTS, questions, "Brief.")


def teaching(model, examples, wrong_weight=0.5, size=None, seed=0) -> Teaching:
    size = size or len(examples)
    shapes = {"it": SHAPE}
    return Teaching(model, TEMPLATE, {"it": examples}, shapes, size, 0, wrong_weight, seed)


def microbatch_of(teaching: Teaching, first: int = 0) -> batches.Microbatch:
    return teaching.teach("it", first)


def fake_answers(monkeypatch, model, *texts: str) -> None:
    """The teacher says these, question after question; its states do not matter."""
    said = [model.tokenizer.encode(text) for text in texts]

    def answer(module, params, context, lengths, questions, question_lengths, stops, new_tokens):
        E, Q, _ = questions.shape
        tokens, counts = np.zeros((E, Q, new_tokens), np.int32), np.ones((E, Q), np.int32)
        for q, ids in enumerate(said):
            tokens[:, q, : len(ids)], counts[:, q] = ids, len(ids)
        hidden = np.zeros((E, Q, new_tokens, params["embedding"].shape[1]), np.float32)
        sure = np.ones(tokens.shape, np.float32)
        return teacher.Answers(*map(jnp.asarray, (tokens, counts, hidden, sure)))

    monkeypatch.setattr(batches, "_answer", answer)


def test_the_teacher_shares_no_layers(byte_model, model):
    asked = [example("a", ("x",), ("y",))]
    expected = microbatch_of(teaching(model, asked))
    sharing = models.load(str(byte_model), "float32", shared_layers="1:2")
    found = microbatch_of(teaching(sharing, asked))
    assert found.answers == expected.answers
    np.testing.assert_array_equal(found.hidden, expected.hidden)


def test_logits_that_are_not_finite_teach_nothing(model, monkeypatch):
    params = dict(model.params)
    params["final_norm"] = params["final_norm"] * np.nan
    broken = dataclasses.replace(model, params=params)
    with pytest.raises(ValueError, match="logits of .* are not finite"):
        microbatch_of(teaching(broken, [example("a", ("one",), ("z",))]))
    fake_answers(monkeypatch, model, "two")
    scores = {k: jnp.full((1, 3), x) for k, x in (("kl", np.nan), ("same", 1), ("tokens", 1))}
    monkeypatch.setattr(validation, "_score", lambda *_, **__: scores)
    validate = validation.Validation(teaching(model, [example("a", ("one",))]), {"it": 1})
    with pytest.raises(ValueError, match="logits of .* with this adapter are not finite .* on it"):
        validate(validation.Variant(None, None, False))


def test_wrong_answers_weigh_less_and_others_as_much(model, monkeypatch):
    """Right is an answer with a gold one in it; a question without gold ones is never wrong."""
    fake_answers(monkeypatch, model, "two", "x", "y")
    microbatch = microbatch_of(teaching(model, [example("a", ("one", "Two"), ("z",), ())], 0.25))
    assert microbatch.right.tolist() == [[True, False, True]]
    weights = microbatch.batch.weights[0]
    assert weights[:5].tolist() == [1, 1, 1, 0.25, 1] and not weights[5:].any()
    assert microbatch.batch.questions.tolist() == [3]


def test_a_right_answer_that_was_cut_off_is_right(model, monkeypatch):
    """SHAPE has room for four letters of an answer; after a line feed it has ended."""
    for said, right in (("twen", True), ("twe", False), ("twix", False), ("tw\nz", False)):
        fake_answers(monkeypatch, model, said)
        microbatch = microbatch_of(teaching(model, [example("a", ("twenty",))]))
        assert microbatch.right[0, 0] == right, said
    stop = model.tokenizer.decode(model.tokenizer.stop_ids[:1])
    fake_answers(monkeypatch, model, f"twe{stop}")
    assert not microbatch_of(teaching(model, [example("a", ("twenty",))])).right.any()


def test_questions_that_weigh_nothing_are_not_in_the_loss(model, monkeypatch):
    fake_answers(monkeypatch, model, "two", "x", "y")
    microbatch = microbatch_of(teaching(model, [example("a", ("two",), ("z",), ())], 0.0))
    assert microbatch.batch.questions.tolist() == [2]
    assert microbatch.batch.weights[0, :4].tolist() == [1, 1, 1, 1]
    assert microbatch.batch.targets[0, :4].tolist() == [0, 1, 2, 2 * SHAPE.new_tokens]


def test_an_answer_ends_before_the_templates_stop(model, monkeypatch):
    fake_answers(monkeypatch, model, "x\nz")
    assert not microbatch_of(teaching(model, [example("a", ("z",))])).right.any()


def test_orders_of_documents_follow_from_seed_and_example(model, monkeypatch):
    fake_answers(monkeypatch, model, "x")
    examples = [example(f"e{i}", ("x",)) for i in range(12)]

    def orders(seed):
        return microbatch_of(teaching(model, examples, seed=seed)).batch.order

    order = orders(0)
    assert {tuple(o) for o in order.tolist()} == {(0, 1, 2), (1, 0, 2)}  # the absent one is last
    np.testing.assert_array_equal(order, orders(0))
    assert (order != orders(1)).any()
    apart = dataclasses.replace(teaching(model, examples), opening=True)
    assert {tuple(o) for o in microbatch_of(apart).batch.order.tolist()} == {(1, 2, 0)}
    first = microbatch_of(teaching(model, examples, size=4), first=8).batch.order
    np.testing.assert_array_equal(first, order[8:])


def test_a_microbatch_has_what_the_teacher_says_to_each_example(model):
    """Of examples of different lengths; the last is the first again."""
    examples = [
        example("a", ("x",), ("y",)),
        Example("b", ("Three words.",), (Question("Why so?", ("x",)),), "Brief."),
    ]
    source = teaching(model, examples, size=3)
    microbatch = microbatch_of(source)
    assert [x.id for x in microbatch.examples] == ["a", "b", "a"]
    for e, fitted in enumerate(source.read("it", 0).examples):
        expected = teacher.teach(model, fitted.encoded, SHAPE.new_tokens)
        tokens = list(itertools.chain(*expected.answers))
        batch, n = microbatch.batch, len(tokens)
        assert batch.tokens[e, :n].tolist() == tokens and not batch.weights[e, n:].any()
        states = np.asarray(microbatch.hidden)[e].reshape(-1, expected.hidden.shape[-1])
        np.testing.assert_allclose(states[batch.targets[e, :n]], expected.hidden, atol=1e-4)
        for q, row in enumerate(teacher.answer_rows(fitted.encoded.questions, expected.answers)):
            assert batch.rows[e, q, : batch.row_lengths[e, q]].tolist() == row
    assert microbatch.work.computed == 3 * SHAPE.computed(0) > microbatch.work.tokens


def test_the_worst_kind_is_that_of_the_largest_ratio():
    baseline = {"a": {"kl": 4.0}, "b": {"kl": 0.5}}
    assert validation.worst({"a": {"kl": 2.0}, "b": {"kl": 0.375}}, baseline) == (0.75, "b")
    assert validation.worst({"a": {"kl": 3.5}, "b": {"kl": 0.375}}, baseline) == (0.875, "a")


def test_scores_are_means_over_the_questions_of_the_sets_that_are_wanted():
    scores = {
        "kl": np.array([[1.0, 3.0, 9.0], [5.0, 7.0, 9.0], [50.0, 70.0, 90.0]]),
        "same": np.array([[True, False, True], [True, True, True], [False, False, False]]),
        "tokens": np.array([[2, 2, 0], [1, 0, 0], [1, 1, 1]]),
    }
    right = np.array([[True, True, False], [False, False, False], [True, True, True]])
    found = validation._means(validation._flat(scores, right, 2))
    expected = {"kl": 3.0, "same": 2 / 3, "same_right": 0.5, "right": 2 / 3, "questions": 3}
    assert found == pytest.approx(expected)
