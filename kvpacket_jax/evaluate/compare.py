"""One example, every method: its answers and what the first question costs. The demo's work."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax

from kvpacket_jax import teacher
from kvpacket_jax.data import Example, Template, encode_example
from kvpacket_jax.evaluate import metrics, summary
from kvpacket_jax.evaluate.answers import answer, reference
from kvpacket_jax.measure.cost import Cost, measure
from kvpacket_jax.measure.machine import Machine
from kvpacket_jax.measure.request import Entry
from kvpacket_jax.methods import Method, Request
from kvpacket_jax.runtime.progress import SILENT, Progress
from models import LanguageModel


class Reply(NamedTuple):
    """One method's answer to one question."""

    method: str
    question: str
    answer: str
    expected: str
    right: bool  # a right answer is in it, word for word
    kl: float  # of the first token's distribution, against full_recompute's
    confidence: float | None = None  # as evaluate.answers has it


class Comparison(NamedTuple):
    replies: list[Reply]  # by method, then by question
    costs: list[Cost]  # of the first question, by method

    def rows(self) -> list[dict]:
        """Each reply with its method's costs, for a JSON file."""
        costs = {cost.method: dataclasses.asdict(cost) for cost in self.costs}
        return [reply._asdict() | costs[reply.method] for reply in self.replies]


def compare(
    model: LanguageModel,
    methods: Mapping[str, Method],
    example: Example,
    template: Template,
    new_tokens: int = 32,
    runs: int = 3,
    machine: Machine | None = None,
    progress: Progress = SILENT,
) -> Comparison:
    """Asks every method all questions of an example, and counts and times the first one.

    Args:
      methods: by the names of their rows; full_recompute must be among them.
      machine: as `measure` takes it.
    """
    encoded = encode_example(model.tokenizer, template, example)
    request = Request(encoded.preamble, encoded.documents, encoded.questions[0])
    count = len(encoded.questions)
    with progress.step(f"{summary.REFERENCE}: answering {count} questions"):
        targets = teacher.teach(model, encoded, new_tokens)
    entries, replies = {}, []
    for name, method in methods.items():
        with progress.step(f"{name}: caching what it reuses"):
            stored = method.store(model, encoded.preamble, encoded.documents)
            entries[name] = Entry(method, jax.block_until_ready(stored))
        if name == summary.REFERENCE:
            answers = reference(model, targets, example.questions, template)
        else:
            with progress.step(f"{name}: answering {count} questions"):
                answers = answer(
                    model, entries[name], targets, example.questions, template, new_tokens
                )
        for question, given in zip(example.questions, answers, strict=True):
            replies.append(
                Reply(
                    name,
                    question.text,
                    given.text,
                    expected=question.answers[0],
                    right=metrics.contains(given.text, question.answers),
                    kl=float(given.kl[0]),
                    confidence=given.confidence,
                )
            )
    costs = measure(model, entries, request, runs, machine, progress=progress)
    return Comparison(replies, costs)
