"""A training step: gradients of microbatches, summed, then one update of the adapter. All pure."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kvpacket_jax import teacher
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.caches import primer_cache
from kvpacket_jax.train import loss as loss_lib
from kvpacket_jax.train.loss import Batch
from models import sharding
from models.kv_cache import KVCache

METRICS = ("kl", "cross_entropy", "agree", "tokens", "questions")


class TrainState(NamedTuple):
    """All that a step changes; float32. A primer of token ids is not in it: nothing changes it."""

    adapter: Adapter
    mean: Adapter  # running mean of the adapters of past steps
    optimizer: optax.OptState
    step: jax.Array  # int32, updates so far


class Sums(NamedTuple):
    """Summed over the microbatches of a step."""

    gradients: Adapter
    loss: jax.Array
    metrics: dict[str, jax.Array]


class Rates(NamedTuple):
    """Learning rates of one step."""

    tokens: jax.Array  # of header, trailer and a learned primer
    writer: jax.Array
    distiller: jax.Array


def init_state(adapter: Adapter, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    adapter = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), adapter)
    return TrainState(adapter, adapter, optimizer.init(adapter), jnp.int32(0))


def zero_sums(adapter: Adapter) -> Sums:
    """Sums over no microbatch."""
    zero = jnp.float32(0)
    return Sums(jax.tree.map(jnp.zeros_like, adapter), zero, dict.fromkeys(METRICS, zero))


def add_microbatch(
    module,
    loss: str,
    learning: int,
    params,
    adapter: Adapter,
    primer: KVCache | None,
    sums: Sums,
    batch: Batch,
    teacher_hidden: jax.Array,
    reduction: str = "mean_questions",
    clip_norm: float = 0.0,
    learn_writer: bool = True,
    opening: bool = False,
) -> Sums:
    """Adds the loss, its gradients and the metrics of one microbatch, none divided by anything.

    Args:
      adapter: without a primer of token ids (`split_trainable`).
      primer: those ids' cache. None: the adapter's own primer, if any, is learned and read here.
      reduction, clip_norm: as `bounded` takes them.
      learn_writer: False: the writer has no gradient, in what is bounded and shown neither.
      opening: as in loss.student_context.
    """

    def objective(adapter):
        if not learn_writer:
            adapter = adapter._replace(writer=jax.lax.stop_gradient(adapter.writer))
        cache = own_primer(module, params, adapter, primer)
        return loss_lib.loss_and_metrics(
            module, params, adapter, cache, batch, teacher_hidden, loss, learning, opening
        )

    (value, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(adapter)
    gradients = bounded(gradients, metrics, reduction, clip_norm)
    return jax.tree.map(jnp.add, sums, Sums(gradients, value, metrics))


def bounded(
    gradients: Adapter, metrics: dict[str, jax.Array], reduction: str, clip_norm: float
) -> Adapter:
    """A microbatch's gradients, of norm `clip_norm` at most once divided as `reduction` says.

    Without a bound, 0, a step goes where its worst microbatch points: their norms differ tenfold.
    """
    if not clip_norm:
        return gradients
    most = clip_norm * divisor(reduction, metrics)
    # A norm that is not finite makes all of them so, and `update` passes over the step.
    scale = most / jnp.maximum(optax.tree.norm(gradients), most)
    return jax.tree.map(lambda g: g * scale, gradients)


def own_primer(module, params, adapter: Adapter, primer: KVCache | None) -> KVCache | None:
    """The cache of a learned primer where the adapter has one, else the one given."""
    if adapter.primer is None:
        return primer
    return primer_cache(module, params, adapter.primer)


def score_microbatch(
    module,
    params,
    adapter: Adapter,
    primer: KVCache | None,
    batch: Batch,
    teacher_hidden: jax.Array,
    opening: bool = False,
) -> dict[str, jax.Array]:
    """loss.question_scores of a microbatch, each `[E, Q]`; the arguments as in `add_microbatch`."""
    given = module, params, adapter, own_primer(module, params, adapter, primer)

    def one(example, hidden):
        context, start = loss_lib.student_context(*given, example, opening=opening)
        return loss_lib.question_scores(module, params, context, start, example, hidden)

    return sharding.over_examples(module.config, one)(batch, teacher_hidden)


def compare_microbatch(
    module,
    params,
    adapter: Adapter,
    primer: KVCache | None,
    batch: Batch,
    teacher_hidden: jax.Array,
    questions: jax.Array,
    question_lengths: jax.Array,
    stop_ids: jax.Array,
    new_tokens: int,
    opening: bool = False,
) -> tuple[dict[str, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """`score_microbatch`, and the student's own greedy answers where they are not the teacher's.

    Args:
      questions: int32 `[E, Q, R]`, without answers; the others as in `add_microbatch`.

    Returns:
      The scores; and tokens int32 `[E, Q, N]`, their lengths int32 `[E, Q]`, 0 where the answer is
      the teacher's or has no token in the batch, and their probabilities float32 `[E, Q, N]`.
    """
    given = module, params, adapter, own_primer(module, params, adapter, primer)

    def one(example, hidden, rows, lengths):
        context, start = loss_lib.student_context(*given, example, opening=opening)
        scores = loss_lib.question_scores(module, params, context, start, example, hidden)
        answers = teacher.decode_rows(
            module,
            params,
            (context,),
            start,
            rows,
            lengths,
            stop_ids,
            new_tokens,
            skipped_Q=scores["same"] | (scores["tokens"] == 0),
        )
        return scores, (answers.tokens, answers.lengths, answers.probabilities)

    return sharding.over_examples(module.config, one)(
        batch, teacher_hidden, questions, question_lengths
    )


def update(
    optimizer: optax.GradientTransformation,
    reduction: str,
    mean_decay: float,
    state: TrainState,
    sums: Sums,
    rates: Rates,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from the sums of a step, divided as `reduction` says.

    A loss or gradient that is not finite leaves the
    state as it was; the metrics show it.

    Args:
      optimizer: gives directions of descent; the rates are applied here.
      mean_decay: of the running mean; it follows closely at first.
    """
    metrics, count = sums.metrics, divisor(reduction, sums.metrics)
    gradients = jax.tree.map(lambda g: g / count, sums.gradients)
    value, norm = sums.loss / count, optax.tree.norm(gradients)
    directions, optimizer_state = optimizer.update(gradients, state.optimizer, state.adapter)
    adapter = optax.apply_updates(state.adapter, _scaled(directions, rates))
    decay = jnp.minimum(mean_decay, (1 + state.step) / (10 + state.step))
    # So written that what stays is its own mean, to the last bit.
    mean = jax.tree.map(lambda m, a: m + (1 - decay) * (a - m), state.mean, adapter)
    new = TrainState(adapter, mean, optimizer_state, state.step + 1)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    state = jax.tree.map(functools.partial(jnp.where, finite), new, state)
    return state, {**metrics, "loss": value, "gradient_norm": norm}


def divisor(reduction: str, metrics: dict[str, jax.Array]) -> jax.Array:
    """What sums over questions are divided by, 1 or more.

    "sum": by nothing (the published code); "mean_tokens": the answers' tokens; "mean_questions":
    the number of questions.
    """
    count = {
        "sum": jnp.float32(1),
        "mean_tokens": metrics["tokens"],
        "mean_questions": metrics["questions"],
    }[reduction]
    return jnp.maximum(count, 1)  # where all questions weigh nothing


def _scaled(directions: Adapter, rates: Rates) -> Adapter:
    scaled = jax.tree.map(lambda d: -rates.tokens * d, directions)
    writer = jax.tree.map(lambda d: -rates.writer * d, directions.writer)
    distiller = jax.tree.map(lambda d: -rates.distiller * d, directions.distiller)
    return scaled._replace(writer=writer, distiller=distiller)
