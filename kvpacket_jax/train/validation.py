"""Validation of an adapter while it trains: KL, agreement and F1 on held-out sets."""

from collections.abc import Callable

import jax
import numpy as np

from kvpacket_jax.data import Example, Template
from kvpacket_jax.evaluate import metrics
from kvpacket_jax.evaluate.answers import answer
from kvpacket_jax.measure.request import Entry
from kvpacket_jax.methods import METHODS, Method
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.runtime import hosts
from kvpacket_jax.teacher import Targets
from models import LanguageModel


class Validation:
    """Calls score an adapter; the teacher's lessons are made once, when first needed.

    Hosts share the examples among them and have the same scores.

    Args:
      sets: name -> examples; the first `count` of each are used.
      encode: Example -> EncodedExample; teach: EncodedExample -> Targets.
      new_tokens: the longest answer.
    """

    def __init__(
        self,
        model: LanguageModel,
        template: Template,
        sets: dict,
        count: int,
        encode: Callable,
        teach: Callable,
        new_tokens: int,
    ):
        self._model, self._template, self._new_tokens = model, template, new_tokens
        examples = [s[i] for s in sets.values() for i in range(min(count, len(s)))]
        encoded = list(map(encode, examples))  # all, so that every host refuses what one would
        mine = slice(jax.process_index(), None, jax.process_count())
        self._examples, self._encoded = examples[mine], encoded[mine]
        self._teach, self._lessons = teach, []

    def __call__(
        self, adapter: Adapter, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Mean KL over the tokens of the teacher's answers; F1 and agreement over questions.

        Nothing if any host was told to stop.
        """
        method = METHODS["kv_packet"](jax.tree.map(np.asarray, adapter))
        # KL and its tokens; F1, agreement and their questions.
        sums, stopped = np.zeros(5), 0
        with hosts.together():
            for i, example in enumerate(self._examples):
                if stopped := bool(stop()):
                    break
                if i == len(self._lessons):
                    self._lessons.append(self._teach(self._encoded[i]))
                self._add(method, example, self._lessons[i], sums)
        told = hosts.share(np.array([*sums, stopped], np.float32)).sum(axis=0)
        kl, tokens, f1, same, questions, stopped = told
        if stopped:
            return {}
        scores = {"kl": kl / tokens, "f1": f1 / questions, "agree": same / questions}
        return {name: float(score) for name, score in scores.items()}

    def _add(self, method: Method, example: Example, targets: Targets, sums: np.ndarray) -> None:
        encoded = targets.example
        entry = Entry(method, method.store(self._model, encoded.preamble, encoded.documents))
        found = answer(
            self._model, entry, targets, example.questions, self._template, self._new_tokens
        )
        for question, given in zip(example.questions, found, strict=True):
            f1 = metrics.f1(given.text, question.answers)
            sums += (given.kl.sum(), len(given.kl), f1, given.same, 1)
