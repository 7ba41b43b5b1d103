"""Some documents, every method: its answers and what the first question costs. The demo's work."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from kvpacket_jax import doubt, teacher
from kvpacket_jax.data import Example, Question, Template, encode_example
from kvpacket_jax.evaluate import metrics, summary
from kvpacket_jax.evaluate.answers import Answer, answer, reference
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
    elsewhere: bool = False  # doubt.is_elsewhere


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
    parts: Sequence[Example],
    template: Template,
    new_tokens: int = 32,
    runs: int = 3,
    machine: Machine | None = None,
    progress: Progress = SILENT,
) -> Comparison:
    """Asks every method all questions, and counts and times the first one.

    Args:
      methods: by the names of their rows; full_recompute must be among them.
      parts: the same documents in several orders, each with questions of its own.
      machine: as `measure` takes it.
    """
    encoded = [encode_example(model.tokenizer, template, part) for part in parts]
    request = Request(encoded[0].preamble, encoded[0].documents, encoded[0].questions[0])
    asking = f"answering {sum(len(part.questions) for part in parts)} questions"
    with progress.step(f"{summary.REFERENCE}: {asking}"):
        targets = [teacher.teach(model, ids, new_tokens) for ids in encoded]
    entries, replies, orders = {}, [], [ids.documents for ids in encoded]
    for name, method in methods.items():
        with progress.step(f"{name}: caching what it reuses"):
            packets = list(method.build_orders(model, request.preamble, orders))
            entries[name] = Entry(method, jax.block_until_ready(method.arrange(model, packets[0])))
        if name == summary.REFERENCE:
            answers = [
                reference(model, t, part.questions, template)
                for t, part in zip(targets, parts, strict=True)
            ]
        else:
            with progress.step(f"{name}: {asking}"):
                answers = [
                    answer(
                        model,
                        Entry(method, method.arrange(model, own)),
                        t,
                        part.questions,
                        template,
                        new_tokens,
                    )
                    for own, t, part in zip(packets, targets, parts, strict=True)
                ]
        for part, said in zip(parts, answers, strict=True):
            replies += [
                _reply(name, part, *asked) for asked in zip(part.questions, said, strict=True)
            ]
    costs = measure(model, entries, request, runs, machine, progress=progress)
    return Comparison(replies, costs)


def _reply(method: str, example: Example, question: Question, given: Answer) -> Reply:
    return Reply(
        method,
        question.text,
        given.text,
        expected=question.answers[0],
        right=metrics.contains(given.text, question.answers),
        kl=float(given.kl[0]),
        confidence=given.confidence,
        elsewhere=doubt.is_elsewhere(given.text, example.documents, question.text),
    )
