"""Validation of an adapter while it trains: KL, agreement and F1 on held-out sets."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from kvpacket_jax import metrics
from kvpacket_jax.adapter import Adapter
from kvpacket_jax.answers import answer
from kvpacket_jax.cost import Entry
from kvpacket_jax.data import Template, encode_example
from kvpacket_jax.methods import METHODS
from models import LanguageModel


class Validation:
    """Calls score an adapter; the teacher's lessons are made once, when first needed.

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
        self._examples = [s[i] for s in sets.values() for i in range(min(count, len(s)))]
        self._teach = teach

    @functools.cached_property
    def _lessons(self):
        encode = functools.partial(encode_example, self._model.tokenizer, self._template)
        return [self._teach(encode(example)) for example in self._examples]

    def __call__(self, adapter: Adapter) -> dict[str, float]:
        """Mean KL over the tokens of the teacher's answers; F1 and agreement over questions."""
        method = METHODS["kv_packet"](jax.tree.map(np.asarray, adapter))
        kl, f1, same = [], [], []
        for example, lesson in zip(self._examples, self._lessons, strict=True):
            encoded = lesson.example
            entry = Entry(method, method.store(self._model, encoded.preamble, encoded.documents))
            found = answer(
                self._model, entry, lesson, example.questions, self._template, self._new_tokens
            )
            for question, given in zip(example.questions, found, strict=True):
                kl += given.kl.tolist()
                f1.append(metrics.f1(given.text, question.answers))
                same.append(given.same)
        return {"kl": float(np.mean(kl)), "f1": float(np.mean(f1)), "agree": float(np.mean(same))}
