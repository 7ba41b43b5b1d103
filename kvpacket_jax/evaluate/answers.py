"""What a method answers, compared with the model that reads everything."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kvpacket_jax.answer_text import Said, confidence, whole
from kvpacket_jax.data import Question, Template
from kvpacket_jax.evaluate.selection import Picked, picked
from kvpacket_jax.measure.request import Entry
from kvpacket_jax.methods import Request
from kvpacket_jax.packets.prefill import prefill
from kvpacket_jax.teacher import Targets, compare_tokens, hidden_states
from models import LanguageModel


class Answer(NamedTuple):
    """To one question. The reference is the greedy answer from the full context."""

    text: str
    same: bool  # as the reference's text
    kl: np.ndarray  # float32 [A]: at each token of the reference's answer, reference || method
    picked: Picked | None = None  # where the method picks tokens and the question's are known
    confidence: float | None = None  # answer_text.confidence; not known of the reference


def reference(
    model: LanguageModel, targets: Targets, questions: Sequence[Question], template: Template
) -> list[Answer]:
    """full_recompute's answers, which the teacher of `targets` gave."""
    return [
        Answer(
            template.answer(q, model.tokenizer.decode(ids)), True, np.zeros(len(ids), np.float32)
        )
        for q, ids in zip(questions, targets.answers, strict=True)
    ]


def answer(
    model: LanguageModel,
    entry: Entry,
    targets: Targets,
    questions: Sequence[Question],
    template: Template,
    new_tokens: int = 32,
) -> list[Answer]:
    """A method's greedy answers to all questions of an example.

    They are rows over one context if the method lets its questions share one; else each has its
    own. Of the reference's tokens the KL is taken with the same context before them. That pass
    also tells whether the method would have said each of them: only other answers are decoded.

    Args:
      targets: the example as `template` encodes it, with the reference's answers.
      new_tokens: at most so many; fewer once every answer has met a stop of the template's.
    """
    example = targets.example
    request = Request(example.preamble, example.documents, example.questions[0])
    indices = range(len(questions))
    shared = entry.method.shared_context(model, entry.stored, request)
    if shared is not None:
        groups = [(indices, shared)]
    else:
        groups = (_alone(model, entry, request, targets, i, new_tokens) for i in indices)
    expected, decode = reference(model, targets, questions, template), model.tokenizer.decode
    starts = np.cumsum([0, *map(len, targets.answers)])
    lengths, answers = [len(d) for d in example.documents], []
    buckets = entry.method.buckets
    for group, prepared in groups:
        context, start, ready = prepared[:3]
        tokens = [targets.answers[i] for i in group]
        queries = [example.questions[i] for i in group]
        hidden = hidden_states(model, context, start, queries, tokens, buckets)
        teacher = targets.hidden[starts[group[0]] : starts[group[-1] + 1]]
        ends = np.cumsum([len(t) for t in tokens])[:-1]
        compared = compare_tokens(model, teacher, hidden)
        if not np.isfinite(compared.kl).all():
            raise ValueError(
                f"The logits of {model.name} with this method are not finite numbers: its "
                "weights, the adapter or a packet are damaged."
            )
        kl, best, probabilities = (np.split(x, ends) for x in compared)
        said = [
            Said(expected[i].text, confidence(decode, template, questions[i], t, p.tolist()))
            for i, t, p in zip(group, tokens, probabilities, strict=True)
        ]
        if differing := [n for n, t in enumerate(tokens) if not np.array_equal(best[n], t)]:
            again = [queries[n] for n in differing]
            ready = ready or prefill(model, context, again, start, new_tokens, buckets)
            asked = [questions[group[n]] for n in differing]
            decoded = whole(model, context, ready, asked, template, new_tokens)
            for n, other in zip(differing, decoded, strict=True):
                said[n] = other
        for i, (text, confident), divergence in zip(group, said, kl, strict=True):
            gold = questions[i].info.get("documents")
            found = picked(prepared.info, len(example.preamble), lengths, gold)
            answers.append(Answer(text, text == expected[i].text, divergence, found, confident))
    return answers


def _alone(model, entry: Entry, request: Request, targets: Targets, i: int, new_tokens: int):
    request = request._replace(query=targets.example.questions[i])
    return range(i, i + 1), entry.method.prepare(model, entry.stored, request, new_tokens)
