"""Validation of an adapter while it trains: KL and agreement on each kind of documents."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kvpacket_jax import data
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter, split_trainable
from kvpacket_jax.packets.packet import read_primer
from kvpacket_jax.runtime import hosts
from kvpacket_jax.train import setup, shapes
from kvpacket_jax.train import step as step_lib
from kvpacket_jax.train.batches import Microbatch, Teaching
from models import LanguageModel, sharding
from models.kv_cache import KVCache

# kind -> {"kl", "same", "same_right", "right", "questions"}; None: the teacher was never right
Scores = dict[str, dict[str, float | None]]


@dataclasses.dataclass
class Validation:
    """Calls score an adapter on every kind, with programs of fixed shapes as in training.

    The teacher answers once, when it is first needed. "Right" is as Microbatch has it.

    Args:
      teaching: its sources and shapes are the kinds'. With an opening the document most like the
        questions comes first, as in requests.
      sets: of each kind, how many examples, or parts of them that begin with the same document.
        What does not fit its shape is left out, and none is scored twice: where a source has
        fewer, there are fewer.

    Raises ValueError for a kind of which no example fits.
    """

    teaching: Teaching
    sets: dict[str, int]

    def __post_init__(self):
        t = self.teaching
        fit = functools.partial(shapes.fitting, t.model, t.template, best_first=t.opening)
        fitting = {
            kind: fit(t.sources[kind], t.shapes[kind], sets) for kind, sets in self.sets.items()
        }
        self.teaching = dataclasses.replace(t, sources=fitting)
        self.sets = {kind: len(examples) for kind, examples in fitting.items()}
        self._microbatches: dict[tuple[str, int], Microbatch] = {}

    def __call__(self, variant: "Variant", stop: Callable[[], int] = lambda: 0) -> Scores:
        """Mean KL of an answer, and the share of answers that are the teacher's.

        Returns:
          Scores by kind; empty if any host was asked to stop.

        Raises:
          ValueError: logits, the teacher's or the student's, that are not finite.
        """
        scores = {}
        for kind, sets in self.sets.items():
            parts = []
            for first in range(0, sets, self.teaching.size):
                if hosts.share(np.bool_(bool(stop()))).any():
                    return {}
                by_question = sharding.fetch(self.score(kind, first, variant))
                right = self.teach(kind, first).right
                parts.append(_flat(by_question, right, sets - first))
            rows = np.concatenate(parts, axis=1)
            check_any(kind, rows.size)
            scores[kind] = _means(rows)
            if not np.isfinite(scores[kind]["kl"]):  # nothing can be said to be better or worse
                raise ValueError(
                    f"The logits of {self.teaching.model.name} with this adapter are not finite "
                    f"numbers on {kind}: it cannot be validated. Train with lower learning rates."
                )
        return scores

    def score(self, kind: str, first: int, variant: "Variant") -> dict[str, jax.Array]:
        """loss.question_scores of a kind's microbatch that begins with example `first`."""
        model, microbatch = self.teaching.model, self.teach(kind, first)
        given = variant.trainable, variant.primer, microbatch.batch, microbatch.hidden
        return _score(model.module, model.params, *given, opening=variant.opening)

    def teach(self, kind: str, first: int) -> Microbatch:
        """A kind's microbatch that begins with example `first`; the teacher answers it once."""
        if (kind, first) not in self._microbatches:
            self._microbatches[kind, first] = self.teaching.teach(kind, first)
        return self._microbatches[kind, first]


class Variant(NamedTuple):
    """A way to build packets, as the programs of training take it."""

    trainable: Adapter
    primer: KVCache | None
    opening: bool  # as in loss.student_context


def variants(model: LanguageModel, chosen: Sequence[Adapter], opening: bool) -> list[Variant]:
    """Adapters that are compared, so given that those of the same sizes share one program.

    Beside a writer the others have one of zeros, which changes nothing. Bare packets have no
    opening, whatever the others have.
    """
    zeros = next((jax.tree.map(jnp.zeros_like, a.writer) for a in chosen if a.writer), None)
    made, bare = [], adapter_lib.empty(model.config.dim)
    for adapter in chosen:
        trainable, ids = split_trainable(adapter._replace(writer=adapter.writer or zeros))
        primer = read_primer(model, bare._replace(primer=ids))
        made.append(Variant(trainable, primer, opening and not adapter_lib.is_bare(adapter)))
    return made


def of_config(model: LanguageModel, config: ConfigDict, soft_tokens: int) -> Validation:
    """A validation on the kinds of `config`, in microbatches of its size.

    Raises ValueError for a kind without room for what the template says before its answers, and
    for one whose longest example is beyond the model's context.
    """
    template, kinds = data.TEMPLATES[config.template], setup.kinds(config)
    setup.check_budget(config.template, kinds)
    sources = setup.validation_sources(config)
    preamble = setup.preamble_length(model, template, *sources.values())
    sizes = {name: setup.shape_of(entry, preamble) for name, entry in kinds}
    for name, shape in sizes.items():
        setup.check_length(model, name, shape, soft_tokens)
    keeps = tuple(config.get("keeps", (1.0,)))
    teaching = Teaching(
        model,
        template,
        sources,
        sizes,
        size=config.batch_size,
        soft_tokens=soft_tokens,
        wrong_weight=1.0,
        seed=0,
        keeps=keeps,
        opening=config.opening,
    )
    return Validation(teaching, {name: entry.sets for name, entry in kinds})


_score = functools.partial(jax.jit, static_argnames=("module", "opening"))(
    step_lib.score_microbatch
)


def check_any(kind: str, questions: int) -> None:
    """Raises ValueError for a kind of which no question could be scored."""
    if not questions:
        raise ValueError(
            f"No answer of {kind} has room in its entry of the config: make its row or answers "
            "larger."
        )


def _flat(scores: dict[str, np.ndarray], right: np.ndarray, examples: int) -> np.ndarray:
    """KL, sameness and rightness of the questions of the first examples, `[3, questions]`."""
    present = scores["tokens"][:examples] > 0
    return np.stack(
        [x[:examples][present].astype(float) for x in (scores["kl"], scores["same"], right)]
    )


def _means(rows: np.ndarray) -> dict[str, float]:
    kl, same, right = rows
    where_right = right > 0
    return {
        "kl": float(kl.mean()),
        "same": float(same.mean()),
        "same_right": float(same[where_right].mean()) if where_right.any() else None,
        "right": float(right.mean()),
        "questions": len(kl),
    }


def worst(scores: Scores, baseline: Scores) -> tuple[float, str]:
    """The largest ratio of a kind's KL to that without training, and that kind."""
    return max((scores[k]["kl"] / max(baseline[k]["kl"], 1e-9), k) for k in scores)
