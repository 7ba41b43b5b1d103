"""The one harness: what a method answers, what it costs and how long it takes; `compare` does all.

Methods know nothing of it. Answers come from all questions about one set of documents as rows over
one context, where the method lets them share one; `cost` and `time_methods` are of one request.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from kvpacket_jax import metrics
from kvpacket_jax.cost import Entry, cost, time_methods
from kvpacket_jax.data import EncodedExample, Example, Question, Template, encode_example
from kvpacket_jax.generate import stream
from kvpacket_jax.methods import Method, Request
from kvpacket_jax.prefill import prefill
from models import LanguageModel


class Answers(NamedTuple):
    """Of Q questions about one set of documents."""

    texts: list[str]
    log_probs: np.ndarray  # float32 [Q, V], of the first token


def answer(
    model: LanguageModel,
    entry: Entry,
    example: EncodedExample,
    questions: Sequence[Question],
    template: Template,
    new_tokens: int = 32,
) -> Answers:
    """Greedy answers to all questions of an example, as rows over one context.

    Args:
      example: `questions` and their documents as `template` encodes them.
      new_tokens: at most so many; fewer once every answer has met a stop of the template's.
    """
    request = Request(example.preamble, example.documents, example.questions[0])
    context, start = entry.method.shared_context(model, entry.stored, request)
    ready = prefill(model, context, example.questions, start, new_tokens)
    log_probs = np.asarray(jax.nn.log_softmax(ready.logits[: len(questions)]))
    ids: list[list[int]] = [[] for _ in questions]
    for fresh in stream(model, context, ready, new_tokens):
        ids = [old + new for old, new in zip(ids, fresh, strict=True)]
        texts = [model.tokenizer.decode(i) for i in ids]
        if all(
            i[-1] in model.tokenizer.stop_ids or any(s in text for s in template.stop[q.form])
            for q, i, text in zip(questions, ids, texts, strict=True)
        ):
            break
    answers = [template.answer(q, text) for q, text in zip(questions, texts, strict=True)]
    return Answers(answers, log_probs)


def kl(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL divergence (reference || found) of log-probabilities float32 `[Q, V]`: float32 `[Q]`."""
    return np.sum(np.exp(reference) * (reference - found), axis=-1)


class Row(NamedTuple):
    """One method's answer to one question; times and costs are those of the first question."""

    method: str
    question: str
    answer: str
    expected: str
    right: bool
    ttft_s: float
    load_s: float
    compose_s: float
    prefill_s: float
    flops_total: int
    flops_overhead: int
    flops_matmul: int
    xla_flops: float | None
    kl: float  # of the first token's distribution, against the first method's


def compare(
    model: LanguageModel,
    methods: dict[str, Method],
    example: Example,
    template: Template,
    new_tokens: int = 32,
    runs: int = 3,
    step: Callable[[str], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> list[Row]:
    """Asks every method all questions of an example, and costs and times it on the first one.

    Args:
      methods: by the label of their rows; the first is what the others' KL is taken against.
      step: called with what is about to be done, for progress; its context is entered around it.
    """
    encoded = encode_example(model.tokenizer, template, example)
    request = Request(encoded.preamble, encoded.documents, encoded.questions[0])
    entries, answers, costs = {}, {}, {}
    for name, method in methods.items():
        with step(f"{name}: caching {len(encoded.documents)} documents"):
            stored = method.store(model, encoded.preamble, encoded.documents)
            entries[name] = Entry(method, jax.block_until_ready(stored))
        with step(f"{name}: answering {len(encoded.questions)} questions"):
            answers[name] = answer(
                model, entries[name], encoded, example.questions, template, new_tokens
            )
    for name, entry in entries.items():
        with step(f"{name}: counting FLOPs"):
            costs[name] = cost(model, entry, request)
    with step(f"timing all methods, {runs} interleaved runs after a warm-up"):
        timings = time_methods(model, entries, request, runs)
    reference = next(iter(answers.values())).log_probs
    rows = []
    for name in methods:
        divergence = kl(reference, answers[name].log_probs)
        for i, (question, text) in enumerate(
            zip(example.questions, answers[name].texts, strict=True)
        ):
            right = metrics.exact_match(text, question.answers)
            parts = (*timings[name][:4], *costs[name], float(divergence[i]))
            rows.append(Row(name, question.text, text, question.answers[0], right, *parts))
    return rows
