"""Validation of an adapter while it trains: KL, agreement and F1 on held-out sets."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from kvpacket_jax import distill, metrics
from kvpacket_jax.adapter import Adapter
from kvpacket_jax.compose import compose
from kvpacket_jax.data import Template, encode_example
from kvpacket_jax.generate import generate
from kvpacket_jax.methods import METHODS
from kvpacket_jax.prefill import prefill
from models import LanguageModel


class Validation:
    """Calls score an adapter; the sets and the teacher's lessons are made once, when first needed.

    Args:
      model: as it trains; `reader`: the same for answering.
      sets: name -> examples; the first `count` of each are used.
      teach: EncodedExample -> Lesson.
    """

    def __init__(
        self,
        model: LanguageModel,
        reader: LanguageModel,
        template: Template,
        sets: dict,
        count: int,
        teach: Callable,
    ):
        self._model, self._reader, self._template = model, reader, template
        self._examples = [s[i] for s in sets.values() for i in range(min(count, len(s)))]
        self._teach = teach
        self._loss = jax.jit(functools.partial(distill.loss_and_metrics, model.module))

    @functools.cached_property
    def _lessons(self):
        encode = functools.partial(encode_example, self._model.tokenizer, self._template)
        return [self._teach(encode(example)) for example in self._examples]

    def __call__(self, adapter: Adapter) -> dict[str, float]:
        """Mean KL and agreement over answer tokens; mean F1 and agreement over questions."""
        sums = {"kl": 0.0, "agree": 0.0, "tokens": 0.0}
        f1, same = [], []
        adapter = jax.tree.map(np.asarray, adapter)
        for example, lesson in zip(self._examples, self._lessons, strict=True):
            batch = distill.pack([lesson], adapter.num_tokens, "sum")
            _, found = self._loss(self._model.params, adapter, batch)
            sums = {k: sums[k] + float(found[k]) for k in sums}
            students = self._answers(adapter, lesson)
            for question, *ids in zip(example.questions, lesson.answers, students, strict=True):
                teacher, student = (self._text(question, i) for i in ids)
                f1.append(metrics.f1(student, question.answers))
                same.append(teacher == student)
        return {
            "kl": sums["kl"] / sums["tokens"],
            "agree_tokens": sums["agree"] / sums["tokens"],
            "f1": float(np.mean(f1)),
            "agree": float(np.mean(same)),
        }

    def _answers(self, adapter: Adapter, lesson: distill.Lesson) -> list[list[int]]:
        model, example = self._reader, lesson.example
        stored = METHODS["kv_packet"](adapter).store(model, example.preamble, example.documents)
        context, start = compose(model, stored)
        longest = max(map(len, lesson.answers))
        ready = prefill(model, (context,), example.questions, start, longest)
        return generate(model, (context,), ready, longest)

    def _text(self, question, tokens: list[int]) -> str:
        return self._template.answer(question, self._model.tokenizer.decode(tokens))
