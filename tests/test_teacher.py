"""The teacher on the device, all examples and questions at once, says what it says one by one."""

import functools
import itertools

import jax
import numpy as np
import pytest

from kvpacket_jax import teacher
from kvpacket_jax.data import EncodedExample

NEW_TOKENS = 6
# Lengths of preamble, documents and questions: different ones, and none of a preamble.
LENGTHS = [(5, (9, 14), (6, 4, 8)), (0, (11,), (7,)), (3, (4, 4, 4), (3, 9))]


def examples(vocab_size: int) -> list[EncodedExample]:
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(0, vocab_size, n).tolist()  # noqa: E731
    return [EncodedExample(draw(p), [*map(draw, d)], [*map(draw, q)]) for p, d, q in LENGTHS]


def padded(rows, shape) -> tuple[np.ndarray, np.ndarray]:
    """Ids, and lengths; rows that are not there have length 1."""
    ids, lengths = np.zeros(shape, np.int32), np.ones(shape[:-1], np.int32)
    for at, row in rows:
        ids[at][: len(row)], lengths[at] = row, len(row)
    return ids, lengths


@pytest.mark.parametrize(("family", "scan_layers"), [("tiny_qwen2", False), ("tiny_llama31", True)])
def test_answers_of_a_batch_are_those_of_each_example(tiny, family, scan_layers):
    model = tiny(family, scan_layers=scan_layers)
    chosen = examples(model.config.vocab_size)
    E, Q = len(chosen), 4  # one question more than any has
    contexts = [((e,), [*x.preamble, *itertools.chain(*x.documents)]) for e, x in enumerate(chosen)]
    rows = [((e, q), row) for e, x in enumerate(chosen) for q, row in enumerate(x.questions)]
    context, context_lengths = padded(contexts, (E, 40))
    questions, question_lengths = padded(rows, (E, Q, 12))
    free = [teacher.teach(model, x, NEW_TOKENS, stop_ids=()) for x in chosen]
    # A token that ends some answers early, others not at all.
    stops = (free[0].answers[0][2],)
    answer = functools.partial(teacher.answer_batch, model.module, new_tokens=NEW_TOKENS)
    found = jax.jit(answer)(
        model.params,
        context,
        context_lengths,
        questions,
        question_lengths,
        np.array(stops, np.int32),
    )
    tokens, lengths, hidden, sure = (np.asarray(x) for x in found)
    ended = set()
    for e, x in enumerate(chosen):
        expected = teacher.teach(model, x, NEW_TOKENS, stop_ids=stops)
        states = []
        for q, given in enumerate(expected.answers):
            assert tokens[e, q, : lengths[e, q]].tolist() == given
            states.append(hidden[e, q, : len(given)])
            ended.add(len(given) < NEW_TOKENS)
            known = teacher.compare_tokens(model, states[-1], states[-1]).probabilities
            np.testing.assert_allclose(sure[e, q, : len(given)], known, rtol=1e-4)
        np.testing.assert_allclose(np.concatenate(states), expected.hidden, atol=1e-4)
    assert ended == {True, False}
