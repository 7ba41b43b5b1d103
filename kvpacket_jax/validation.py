"""Validation of an adapter while it trains: KL, agreement and F1 on held-out sets."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from kvpacket_jax import hosts, metrics
from kvpacket_jax.adapter import Adapter
from kvpacket_jax.answers import answer
from kvpacket_jax.cost import Entry
from kvpacket_jax.data import Template, encode_example
from kvpacket_jax.methods import METHODS, Method
from models import LanguageModel


class Validation:
    """Calls score an adapter; the teacher's lessons are made once, when first needed.

    Hosts share the examples among them and have the same scores.

    Args:
      sets: name -> examples; the first `count` of each are used.
      teach: EncodedExample -> Lesson.
      new_tokens: the longest answer.
    """

    def __init__(
        self,
        model: LanguageModel,
        template: Template,
        sets: dict,
        count: int,
        teach: Callable,
        new_tokens: int,
    ):
        self._model, self._template, self._new_tokens = model, template, new_tokens
        examples = [s[i] for s in sets.values() for i in range(min(count, len(s)))]
        self._examples = examples[jax.process_index() :: jax.process_count()]
        self._teach = teach

    @functools.cached_property
    def _lessons(self):
        encode = functools.partial(encode_example, self._model.tokenizer, self._template)
        return [self._teach(encode(example)) for example in self._examples]

    def __call__(self, adapter: Adapter) -> dict[str, float]:
        """Mean KL over the tokens of the teacher's answers; F1 and agreement over questions."""
        method = METHODS["kv_packet"](jax.tree.map(np.asarray, adapter))
        # KL and its tokens; F1, agreement and their questions.
        sums = np.zeros(5)
        with hosts.together():
            self._add(method, sums)
        kl, tokens, f1, same, questions = hosts.share(sums.astype(np.float32)).sum(axis=0)
        scores = {"kl": kl / tokens, "f1": f1 / questions, "agree": same / questions}
        return {name: float(score) for name, score in scores.items()}

    def _add(self, method: Method, sums: np.ndarray) -> None:
        for example, lesson in zip(self._examples, self._lessons, strict=True):
            encoded = lesson.example
            entry = Entry(method, method.store(self._model, encoded.preamble, encoded.documents))
            found = answer(
                self._model, entry, lesson, example.questions, self._template, self._new_tokens
            )
            for question, given in zip(example.questions, found, strict=True):
                f1 = metrics.f1(given.text, question.answers)
                sums += (given.kl.sum(), len(given.kl), f1, given.same, 1)
