"""Self-distillation: the same frozen model reading the full context teaches it reading packets.

The student reads packets, built, composed and prefilled by the very functions that serve requests.
The loss is the KL divergence between the teacher's next-token distributions and its own
(arXiv 2604.13226, section 3); only the adapter gets gradients.

More letters: E examples of a batch, Q questions of an example, R rows of a question with its
answer, A answer tokens of an example, all questions' together.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import round_up
from kvpacket_jax.packets.compose import place
from kvpacket_jax.packets.packet import packet_caches
from kvpacket_jax.packets.prefill import prefill_rows
from kvpacket_jax.teacher import Targets, answer_rows, kl_divergence, log_probabilities
from models import kv_cache, sharding

REDUCTIONS = ("sum", "mean_tokens", "mean_questions")
LOSSES = ("kl", "cross_entropy")
VOCAB_ROWS = 64  # rows projected to the vocabulary at once: [A, V] is never whole


class Batch(NamedTuple):
    """E lessons as arrays, padded. Absent documents have length 0 and stand last."""

    preamble: np.ndarray  # int32 [E, Tp]; Tp 0 without one
    preamble_length: np.ndarray  # int32 [E]
    documents: np.ndarray  # int32 [E, P, T]
    document_lengths: np.ndarray  # int32 [E, P], before wrapping
    rows: np.ndarray  # int32 [E, Q, R]: question and answer without its last token
    row_lengths: np.ndarray  # int32 [E, Q]
    picks: np.ndarray  # int32 [E, A]: index into Q * R of the row that predicts each token
    tokens: np.ndarray  # int32 [E, A]: the teacher's
    teacher: np.ndarray  # float32 [E, A, D]
    weights: np.ndarray  # float32 [E, A]: of each token in the loss; 0 for padding


class Sizes(NamedTuple):
    """What arrays of lessons need; the largest of each over several hosts is what all need."""

    preamble: int  # Tp
    documents: int  # P
    document: int  # T
    questions: int  # Q
    row: int  # R
    answers: int  # A

    @classmethod
    def of(cls, preamble, documents, wrapped, questions, row, answers, adapter_tokens) -> "Sizes":
        """Lengths rounded up so that few programs are compiled.

        `wrapped` is a document's with its soft tokens: what is rounded to a multiple of 16.
        """
        document = round_up(wrapped, 16) - adapter_tokens
        answers = round_up(answers, 4 * VOCAB_ROWS)
        return cls(
            round_up(preamble, 16), documents, document, questions, round_up(row, 4), answers
        )


def sizes(lessons: Sequence[Targets], adapter_tokens: int) -> Sizes:
    """The sizes of a batch; `adapter_tokens` is h + t."""
    examples = [targets.example for targets in lessons]
    rows = [answer_rows(targets.example.questions, targets.answers) for targets in lessons]
    longest = max(len(d) for example in examples for d in example.documents)
    return Sizes.of(
        max(len(example.preamble) for example in examples),
        max(len(example.documents) for example in examples),
        longest + adapter_tokens,
        max(map(len, rows)),
        max(len(r) for rs in rows for r in rs),
        max(map(_answer_tokens, lessons)),
        adapter_tokens,
    )


def _answer_tokens(targets: Targets) -> int:
    return sum(map(len, targets.answers))


def counts(lessons: Sequence[Targets]) -> dict[str, int]:
    """By reduction, what a sum over these lessons is divided by.

    "sum" is the published one; "mean_tokens" averages over tokens, "mean_questions" sums over an
    answer's tokens and averages over questions.
    """
    questions = sum(len(targets.answers) for targets in lessons)
    return {
        "sum": 1,
        "mean_tokens": sum(map(_answer_tokens, lessons)),
        "mean_questions": questions,
    }


def empty(sizes: Sizes, examples: int, dim: int) -> Batch:
    """A batch of nothing but padding."""
    (Tp, P, T, Q, R, A), E = sizes, examples
    return Batch(
        np.zeros((E, Tp), np.int32),
        np.zeros((E,), np.int32),
        np.zeros((E, P, T), np.int32),
        np.zeros((E, P), np.int32),
        np.zeros((E, Q, R), np.int32),
        np.ones((E, Q), np.int32),
        np.zeros((E, A), np.int32),
        np.zeros((E, A), np.int32),
        np.zeros((E, A, dim), np.float32),
        np.zeros((E, A), np.float32),
    )


def pack(lessons: Sequence[Targets], sizes: Sizes, count: int) -> Batch:
    """Lessons to arrays of these sizes, each token's loss divided by `count` (`counts`)."""
    batch = empty(sizes, len(lessons), lessons[0].hidden.shape[-1])
    for e, targets in enumerate(lessons):
        preamble = targets.example.preamble
        batch.preamble[e, : len(preamble)], batch.preamble_length[e] = preamble, len(preamble)
        for p, ids in enumerate(targets.example.documents):
            batch.documents[e, p, : len(ids)], batch.document_lengths[e, p] = ids, len(ids)
        picks = []
        for q, ids in enumerate(answer_rows(targets.example.questions, targets.answers)):
            batch.rows[e, q, : len(ids)], batch.row_lengths[e, q] = ids, len(ids)
            first = q * sizes.row + len(targets.example.questions[q]) - 1
            picks += range(first, first + len(targets.answers[q]))
        n = len(picks)
        batch.picks[e, :n], batch.tokens[e, :n] = picks, [t for a in targets.answers for t in a]
        batch.teacher[e, :n], batch.weights[e, :n] = targets.hidden, 1
    return batch._replace(weights=batch.weights / np.float32(count))


def tokens(lessons: Sequence[Targets], adapter_tokens: int) -> int:
    """Tokens that a step runs through the layers, without padding."""
    return sum(
        targets.example.context_length(adapter_tokens)
        + sum(map(len, answer_rows(targets.example.questions, targets.answers)))
        for targets in lessons
    )


def computed(sizes: Sizes, adapter_tokens: int) -> int:
    """The same for one example with the padding."""
    packets = sizes.documents * (sizes.document + adapter_tokens)
    return sizes.preamble + packets + sizes.questions * sizes.row


def student_hidden(module, params, adapter: Adapter, targets: Batch) -> jax.Array:
    """The student's states float32 `[A, D]` for one example (`targets` without its axis E).

    packet_caches, place and prefill_rows are what requests run through.
    """
    config, dtype = module.config, params["embedding"].dtype
    P, T = targets.documents.shape
    caches = packet_caches(module, params, adapter, targets.documents, targets.document_lengths)
    present = targets.document_lengths > 0
    caches = caches._replace(valid=caches.valid & present[:, None])
    Tp = targets.preamble.shape[0]
    # The last packet is written whole, padding included, wherever it starts.
    slots = round_up(Tp + P * (T + adapter.num_tokens), 128)
    context = kv_cache.init(config, 1, slots, dtype)
    if Tp:
        bare = adapter_lib.empty(config.dim)
        length = targets.preamble_length[None]
        preamble = packet_caches(module, params, bare, targets.preamble[None], length)
        context = place(config, context, preamble, jnp.int32(0), jnp.int32(0))
    offset = targets.preamble_length
    for p in range(P):
        context = place(config, context, kv_cache.row(caches, p), offset, offset)
        wrapped = targets.document_lengths[p] + adapter.num_tokens
        offset = offset + jnp.where(present[p], wrapped, 0)
    x, _ = prefill_rows(module, params, (context,), targets.rows, targets.row_lengths, offset)
    return x.reshape(-1, x.shape[-1])[targets.picks]


def loss_and_metrics(module, params, adapter: Adapter, batch: Batch, loss: str = "kl"):
    """The weighted loss of a batch, and sums over its answer tokens.

    Returns:
      (loss, {"kl", "cross_entropy", "agree": float32 sums over tokens, "tokens": their number}).
    """
    one = functools.partial(_example_sums, module, params, adapter)
    axis = sharding.DATA if module.config.mesh else None
    sums = jax.vmap(one, spmd_axis_name=axis)(batch)
    sums = jax.tree.map(lambda x: x.sum(), sums)
    return sums[f"weighted_{loss}"], sums


def _example_sums(module, params, adapter: Adapter, targets: Batch):
    student = student_hidden(module, params, adapter, targets)
    rows = functools.partial(_rows, module, params)
    blocks = jax.tree.map(
        lambda x: x.reshape(-1, VOCAB_ROWS, *x.shape[1:]),
        (student, targets.teacher, targets.tokens, targets.weights),
    )
    # Checkpointed: the backward pass projects a block again instead of keeping its logits.
    sums = jax.lax.map(jax.checkpoint(lambda block: rows(*block)), blocks)
    return jax.tree.map(lambda x: x.sum(), sums)


def _rows(module, params, student, teacher, tokens, weights):
    log_q = log_probabilities(module, params, student)
    log_p = jax.lax.stop_gradient(log_probabilities(module, params, teacher))
    kl = kl_divergence(log_p, log_q)
    cross_entropy = -jnp.take_along_axis(log_q, tokens[:, None], axis=-1)[:, 0]
    real = (weights > 0).astype(jnp.float32)
    return {
        "weighted_kl": kl * weights,
        "weighted_cross_entropy": cross_entropy * weights,
        "kl": kl * real,
        "cross_entropy": cross_entropy * real,
        "agree": (log_q.argmax(-1) == log_p.argmax(-1)) * real,
        "tokens": real,
    }


class TrainState(NamedTuple):
    """All that a step changes; float32."""

    adapter: Adapter
    optimizer: optax.OptState
    step: jax.Array  # int32


def init_state(adapter: Adapter, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    adapter = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), adapter)
    return TrainState(adapter, optimizer.init(adapter), jnp.int32(0))


def train_step(module, optimizer, loss: str, params, state: TrainState, batch: Batch):
    """One update. Pure; the loop jits it with donation of `state`, and shardings on a mesh.

    Each copy of the model runs one example at a time, so memory does not grow with the batch, whose
    size must be a multiple of the copies. A loss or gradient that is not finite leaves the state as
    it was; the metrics show it.
    """

    def gradients_of(batch):
        objective = lambda adapter: loss_and_metrics(module, params, adapter, batch, loss)  # noqa: E731
        return jax.value_and_grad(objective, has_aux=True)(state.adapter)

    copies = sharding.num_replicas(module.config.mesh)
    turns = jax.tree.map(functools.partial(_turns, copies=copies), batch)
    summed = jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(gradients_of, turns))
    (value, metrics), gradients = summed
    norm = optax.tree.norm(gradients)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.adapter)
    adapter = optax.apply_updates(state.adapter, updates)
    new = TrainState(adapter, optimizer_state, state.step + 1)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    return state, {**metrics, "loss": value, "gradient_norm": norm}


def _turns(x: jax.Array, copies: int) -> jax.Array:
    """`[E, ...]`, where each copy of the model holds neighbours, as `[E / copies, copies, ...]`."""
    return jnp.swapaxes(x.reshape(copies, -1, *x.shape[1:]), 0, 1)
