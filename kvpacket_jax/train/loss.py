"""Self-distillation: the frozen model reading the full context teaches itself reading packets.

The student reads packets, built, composed and prefilled by the very functions that serve requests.
The loss is the KL divergence between the teacher's next-token distributions and its own
(arXiv 2604.13226, section 3); only the adapter gets gradients.

More letters: E examples of a microbatch, P documents of an example, T tokens of a document, Q
questions of an example, R tokens of a question with its answer, N tokens of an answer, A answer
tokens of an example, all questions' together.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import round_up
from kvpacket_jax.packets.caches import distilled_caches, packet_caches
from kvpacket_jax.packets.compose import place
from kvpacket_jax.packets.prefill import prefill_rows
from kvpacket_jax.teacher import kl_divergence, log_probabilities
from kvpacket_jax.train.shapes import Fitted, Shape
from models import kv_cache, sharding
from models.kv_cache import KVCache

REDUCTIONS = ("sum", "mean_tokens", "mean_questions")
# Each a weighted sum of what is measured at every answer token. "both_kl" is for a distiller:
# forwards the student covers what the teacher may say, backwards it says nothing else.
LOSSES = {
    "kl": {"kl": 1.0},
    "cross_entropy": {"cross_entropy": 1.0},
    "reverse_kl": {"reverse_kl": 1.0},
    "both_kl": {"kl": 0.5, "reverse_kl": 0.5},
}
VOCAB_ROWS = 64  # rows projected to the vocabulary at once: [A, V] is never whole


class Batch(NamedTuple):
    """E examples as arrays, padded. Absent documents have length 0 and stand last."""

    preamble: np.ndarray  # int32 [E, Tp]; Tp 0 without one
    preamble_length: np.ndarray  # int32 [E]
    documents: np.ndarray  # int32 [E, P, T]
    document_lengths: np.ndarray  # int32 [E, P], before wrapping
    order: np.ndarray  # int32 [E, P]: the documents, those with gradients first
    rows: np.ndarray  # int32 [E, Q, R]: question and answer without its last token
    row_lengths: np.ndarray  # int32 [E, Q]
    picks: np.ndarray  # int32 [E, A]: index into Q * R of the row that predicts each token
    targets: np.ndarray  # int32 [E, A]: index into Q * N of the teacher's token and state
    tokens: np.ndarray  # int32 [E, A]: the teacher's
    weights: np.ndarray  # float32 [E, A]: of each token in the loss; 0 for padding
    questions: np.ndarray  # float32 [E]: how many have a token in the loss
    keep: np.ndarray  # float32 [E]: the share of a document's slots that a distiller keeps


def pack(
    examples: Sequence[Fitted],
    answers: Sequence[Sequence[Sequence[int]]],
    weights: Sequence[Sequence[float]],
    shape: Shape,
    orders: Sequence[Sequence[int]] | None = None,
    keeps: Sequence[float] | None = None,
) -> Batch:
    """Examples with the teacher's answers as arrays of a shape.

    A question whose row or answer does not fit any more is not in the loss.

    Args:
      answers: token ids of each example's questions', the stop token included.
      weights: of each question in the loss.
      orders: of each example's P documents, those with gradients first; as they come if None.
      keeps: of each example's documents, the share of slots that stays; 1 if None.
    """
    E, s = len(examples), shape
    batch = Batch(
        np.zeros((E, s.preamble), np.int32),
        np.zeros(E, np.int32),
        np.zeros((E, s.documents, s.tokens), np.int32),
        np.zeros((E, s.documents), np.int32),
        np.tile(np.arange(s.documents, dtype=np.int32), (E, 1)),
        np.zeros((E, s.questions, s.row), np.int32),
        np.ones((E, s.questions), np.int32),
        *(np.zeros((E, s.answers), np.int32) for _ in range(3)),
        np.zeros((E, s.answers), np.float32),
        np.zeros(E, np.float32),
        np.ones(E, np.float32) if keeps is None else np.array(keeps, np.float32),
    )
    for e, example in enumerate(examples):
        _put(batch.preamble[e], batch.preamble_length[e : e + 1], example.encoded.preamble)
        for p, ids in enumerate(example.encoded.documents):
            _put(batch.documents[e, p], batch.document_lengths[e, p : p + 1], ids)
        if orders is not None:
            batch.order[e] = orders[e]
        used = 0
        for q, (question, answer) in enumerate(
            zip(example.encoded.questions, answers[e], strict=True)
        ):
            row = [*question, *answer[:-1]]
            n, room = len(answer), len(row) <= s.row and used + len(answer) <= s.answers
            if not room or not weights[e][q]:
                continue
            _put(batch.rows[e, q], batch.row_lengths[e, q : q + 1], row)
            at = slice(used, used + n)
            batch.picks[e, at] = np.arange(n) + q * s.row + len(question) - 1
            batch.targets[e, at] = np.arange(n) + q * s.new_tokens
            batch.tokens[e, at], batch.weights[e, at] = answer, weights[e][q]
            batch.questions[e] += 1
            used += n
    return batch


def real_tokens(examples: Sequence[Fitted], batch: Batch, soft_tokens: int) -> int:
    """Tokens that the student runs through the layers, without padding and unused questions."""
    contexts = sum(x.encoded.context_length(soft_tokens) for x in examples)
    unused = batch.row_lengths.size - batch.questions.sum()  # rows of length 1
    return int(contexts + batch.row_lengths.sum() - unused)


def _put(row: np.ndarray, length: np.ndarray, ids: Sequence[int]) -> None:
    row[: len(ids)], length[0] = ids, len(ids)


def student_hidden(
    module,
    params,
    adapter: Adapter,
    primer: KVCache | None,
    example: Batch,
    learning: int,
    opening: bool = False,
) -> jax.Array:
    """The student's states float32 `[A, D]` for one example, the arguments as `student_context`'s.

    packet_caches, place and prefill_rows are what requests run through.
    """
    context, start = student_context(module, params, adapter, primer, example, learning, opening)
    return _answer_states(module, params, context, start, example)


def _answer_states(module, params, context: KVCache, start, example: Batch) -> jax.Array:
    x, _ = prefill_rows(module, params, (context,), example.rows, example.row_lengths, start)
    return x.reshape(-1, x.shape[-1])[example.picks]


def student_context(
    module,
    params,
    adapter: Adapter,
    primer: KVCache | None,
    example: Batch,
    learning: int = 1_000_000,
    opening: bool = False,
) -> tuple[KVCache, jax.Array]:
    """The composed packets of one example (`example` without its axis E), and where they end.

    Args:
      primer: `primer_cache` of the adapter's.
      learning: documents that gradients go through, the first of `example.order`; the others are
        as they are.
      opening: the first document is read after the preamble, in no other way: as `adapter.opening`
        builds it. It is the last of `example.order`, for no gradient goes through it.
    """
    config, dtype = module.config, params["embedding"].dtype
    P, T = example.documents.shape
    Tp, preamble = example.preamble.shape[0], None
    if Tp:
        bare, length = adapter_lib.empty(config.dim), example.preamble_length[None]
        preamble = packet_caches(module, params, bare, example.preamble[None], length)
    build = functools.partial(_document_caches, module, params, adapter, primer)
    if opening:
        first = _opening_cache(module, params, adapter, preamble, example)
        caches = first if P == 1 else kv_cache.join_rows(first, build(_later(example), learning))
    else:
        caches = build(example, learning)
    present = example.document_lengths > 0
    caches = caches._replace(valid=caches.valid & present[:, None])
    # The last packet is written whole, padding included, wherever it starts.
    slots = round_up(Tp + P * (T + adapter.num_tokens), 64)
    context = kv_cache.init(config, 1, slots, dtype, bias=caches.bias is not None)
    if preamble is not None:
        context = place(config, context, preamble, jnp.int32(0), jnp.int32(0))
    offset = example.preamble_length
    for p in range(P):
        context = place(config, context, kv_cache.row(caches, p), offset, offset)
        soft_tokens = 0 if opening and p == 0 else adapter.num_tokens
        wrapped = example.document_lengths[p] + soft_tokens
        offset = offset + jnp.where(present[p], wrapped, 0)
    return context, offset


def _opening_cache(module, params, adapter: Adapter, preamble, example: Batch) -> KVCache:
    """The first document's cache, with as many slots as the others'."""
    alone = adapter_lib.empty(module.config.dim)._replace(distiller=adapter.distiller)
    given = jax.lax.stop_gradient(alone), example.documents[:1], example.document_lengths[:1]
    cache = _caches(module, params, *given, preamble, keep=example.keep)
    return kv_cache.resize(cache, cache.num_slots + adapter.num_tokens)


def _later(example: Batch) -> Batch:
    """The example without its first document, which is the last of its order."""
    documents, lengths = example.documents[1:], example.document_lengths[1:]
    order = example.order[:-1] - 1
    return example._replace(documents=documents, document_lengths=lengths, order=order)


def _document_caches(module, params, adapter, primer, example: Batch, learning: int) -> KVCache:
    """The documents' caches as batch rows, in their own order."""
    build = functools.partial(_caches, module, params, keep=example.keep)
    P = len(example.documents)
    if learning >= P:
        return build(adapter, example.documents, example.document_lengths, primer)
    ids, lengths = example.documents[example.order], example.document_lengths[example.order]
    fixed, fixed_primer = jax.lax.stop_gradient((adapter, primer))
    first = build(adapter, ids[:learning], lengths[:learning], primer)
    rest = build(fixed, ids[learning:], lengths[learning:], fixed_primer)
    return kv_cache.take_rows(kv_cache.join_rows(first, rest), jnp.argsort(example.order))


def _caches(module, params, adapter: Adapter, ids, lengths, primer, keep: jax.Array) -> KVCache:
    """`packet_caches`, or where there is a distiller: what it drops is not seen, none is moved.

    A kept key's bias is 0, with the gradient of its score: straight through the choice.
    """
    if adapter.distiller is None:
        return packet_caches(module, params, adapter, ids, lengths, primer)
    wrapped = lengths + adapter.num_tokens
    top = jnp.maximum((wrapped * keep).astype(jnp.int32), max(adapter.num_tokens, 1))
    made = distilled_caches(module, params, adapter, ids, lengths, primer, top)
    cache = made.cache._replace(valid=made.cache.valid & made.kept)
    return kv_cache.add_bias(cache, made.scores - jax.lax.stop_gradient(made.scores))


def loss_and_metrics(
    module,
    params,
    adapter: Adapter,
    primer: KVCache | None,
    batch: Batch,
    teacher_hidden: jax.Array,
    loss: str = "kl",
    learning: int = 1_000_000,
    opening: bool = False,
):
    """The weighted loss of a microbatch, and sums over its answer tokens.

    Args:
      teacher_hidden: float32 `[E, Q, N, D]`, teacher.Answers.hidden.
      learning, opening: as in `student_context`.

    Returns:
      (loss, {"kl", "cross_entropy", "agree": float32 sums over tokens, "tokens": their number,
      "questions": that of questions}).
    """

    def one(example, hidden):
        student = student_hidden(module, params, adapter, primer, example, learning, opening)
        return _token_scores(module, params, student, example, hidden, loss)

    score = sharding.over_examples(module.config, one)
    scores = score(batch, jax.lax.stop_gradient(teacher_hidden))
    real = (batch.weights > 0).astype(jnp.float32)
    sums = {name: jnp.sum(scores[name] * real) for name in ("kl", "cross_entropy", "agree")}
    sums |= {"tokens": real.sum(), "questions": batch.questions.sum()}
    return jnp.sum(scores["loss"] * batch.weights), sums


def question_scores(
    module, params, context: KVCache, start, example: Batch, teacher_hidden: jax.Array
) -> dict[str, jax.Array]:
    """Of each question: {"kl": summed over its answer, "same": whether the student would have said
    each of its tokens, "tokens": their number}, each `[Q]`, and "probabilities": of the tokens for
    the student, float32 `[Q, N]`.

    What has no token in the batch has 0 tokens, and probability 0.

    Args:
      context, start: `student_context` of the example, which has no axis E here.
      teacher_hidden: float32 `[Q, N, D]`.
    """
    Q, N = len(example.rows), teacher_hidden.shape[1]
    student = _answer_states(module, params, context, start, example)
    scores = _token_scores(module, params, student, example, teacher_hidden)
    real = (example.weights > 0).astype(jnp.float32)
    add = lambda x: jax.ops.segment_sum(x * real, example.targets // N, Q)  # noqa: E731
    tokens = add(jnp.ones_like(real))
    same = (add(scores["agree"]) == tokens) & (tokens > 0)
    # Padding has targets too: it adds 0.
    sure = jnp.zeros(Q * N).at[example.targets].add(jnp.exp(-scores["cross_entropy"]) * real)
    found = {"kl": add(scores["kl"]), "same": same, "tokens": tokens}
    return found | {"probabilities": sure.reshape(Q, N)}


def _token_scores(
    module, params, student: jax.Array, example: Batch, teacher_hidden: jax.Array, loss: str = "kl"
) -> dict[str, jax.Array]:
    """What `_compare` says of each answer token of an example, float32 `[A]`.

    And "loss", the only one with a gradient: that of each row is computed beside its value, while
    its logits are at hand. A backward pass of its own would keep or project all of them again.
    """
    teacher = teacher_hidden.reshape(-1, teacher_hidden.shape[-1])[example.targets]
    A = len(example.tokens)
    padding = -A % VOCAB_ROWS
    blocks = jax.tree.map(
        lambda x: jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1)).reshape(
            -1, VOCAB_ROWS, *x.shape[1:]
        ),
        jax.lax.stop_gradient((student, teacher, example.tokens)),
    )
    slopes_and_scores = jax.grad(functools.partial(_compare, module, params, loss), has_aux=True)
    made = jax.lax.map(lambda block: slopes_and_scores(*block), blocks)
    slopes, scores = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:A], made)
    # Of value 0: it only has the gradient.
    change = jnp.sum((student - jax.lax.stop_gradient(student)) * slopes, axis=-1)
    return scores | {"loss": scores["loss"] + change}


def _compare(module, params, loss: str, student, teacher, tokens):
    """The summed loss of some rows, and each row's scores."""
    log_q = log_probabilities(module, params, student)
    log_p = log_probabilities(module, params, teacher)
    said = jnp.take_along_axis(log_q, tokens[:, None], axis=-1)[:, 0]
    scores = {
        "kl": kl_divergence(log_p, log_q),
        "cross_entropy": -said,
        "agree": (said >= log_q.max(axis=-1)).astype(jnp.float32),
    }
    if "reverse_kl" in LOSSES[loss]:
        scores["reverse_kl"] = kl_divergence(log_q, log_p)
    scores["loss"] = sum(weight * scores[name] for name, weight in LOSSES[loss].items())
    return scores["loss"].sum(), scores
