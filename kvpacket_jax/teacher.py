"""What the model that reads the full context says: its answers, hidden states, and KL to them.

The teacher reads preamble, documents and query in full and answers greedily; its final hidden
states of the answer's rows are stored, not its logits (`[A, D]` instead of `[A, V]`).

A is the answer tokens of an example, all questions' together; R the rows of a question with its
answer.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from absl import logging
from etils import epath
from safetensors import numpy as safetensors_numpy

from kvpacket_jax.data import EncodedExample, Example, Template, encode_example
from kvpacket_jax.methods.base import store_preamble
from kvpacket_jax.methods.full_recompute import read_documents
from kvpacket_jax.packets.buckets import Buckets, power_of_two
from kvpacket_jax.packets.generate import NOT_FINITE, generate, likeliest, probability, stop_array
from kvpacket_jax.packets.prefill import Context, pad_rows, prefill, prefill_rows
from kvpacket_jax.runtime.sealed import Damaged
from models import LanguageModel, identity, kv_cache, sharding
from models.disk.files import write_whole

COMPARED_ROWS = 16  # rows whose next-token distributions are compared at once


@dataclasses.dataclass(frozen=True)
class Targets:
    """One example with the teacher's answers."""

    example: EncodedExample
    answers: list[list[int]]  # token ids of each question's, the stop token included
    hidden: np.ndarray  # float32 [A, D]: the states that predict them, in order


def teach(
    model: LanguageModel,
    example: EncodedExample,
    new_tokens: int,
    stop_ids: Sequence[int] | None = None,
    buckets: Buckets = Buckets(),
) -> Targets:
    """Runs the teacher: all questions of an example as rows over one full context."""
    stored = store_preamble(model, example.preamble, buckets)
    context, start = read_documents(model, stored, example.documents, buckets)
    ready = prefill(model, context, example.questions, start, new_tokens, buckets)
    answers = generate(model, context, ready, new_tokens, stop_ids)
    hidden = hidden_states(model, context, start, example.questions, answers, buckets)
    return Targets(example, answers, hidden)


def hidden_states(
    model: LanguageModel,
    context: Context,
    start: int,
    questions: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    buckets: Buckets = Buckets(),
) -> np.ndarray:
    """Hidden states float32 `[A, D]` that predict the tokens of `answers`, all questions' in order.

    Each question and its answer is a row over the shared `context`, from position `start` on.
    """
    rows = answer_rows(questions, answers)
    width = buckets.query(max(map(len, rows)))
    ids, lengths = pad_rows(rows, width)
    x = _hidden(model.module, model.params, context, ids, lengths, jnp.int32(start))
    x = np.asarray(x)
    parts = [
        x[i, len(q) - 1 : len(q) - 1 + len(a)]
        for i, (q, a) in enumerate(zip(questions, answers, strict=True))
    ]
    return np.concatenate(parts)


def answer_rows(
    questions: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Token ids of each question and its answer, whose last token predicts nothing."""
    return [[*q, *a[:-1]] for q, a in zip(questions, answers, strict=True)]


@functools.partial(jax.jit, static_argnames=("module",))
def _hidden(module, params, context, ids_QxR, lengths_Q, start):
    return prefill_rows(module, params, context, ids_QxR, lengths_Q, start)[0]


class Compared(NamedTuple):
    """What a student says where the teacher says A tokens."""

    kl: np.ndarray  # float32 [A]: KL(teacher || student) of the next token, in nats
    tokens: np.ndarray  # int32 [A]: the student's likeliest
    probabilities: np.ndarray  # float32 [A]: of these


def compare_tokens(model: LanguageModel, teacher: np.ndarray, student: np.ndarray) -> Compared:
    """The next tokens of two models, from their final hidden states float32 `[A, D]`."""
    A = len(teacher)
    rows = power_of_two(A, COMPARED_ROWS)
    padded = (np.pad(x, ((0, rows - A), (0, 0))) for x in (teacher, student))
    compared = _compare_tokens(model.module, model.params, *padded)
    return Compared(*(np.asarray(x)[:A] for x in compared))


@functools.partial(jax.jit, static_argnames=("module",))
def _compare_tokens(module, params, teacher, student):
    def block(pair):
        log_p, log_q = (log_probabilities(module, params, x) for x in pair)
        likeliest = log_q.argmax(-1).astype(jnp.int32)
        return kl_divergence(log_p, log_q), likeliest, jnp.exp(log_q.max(-1))

    blocks = (x.reshape(-1, COMPARED_ROWS, x.shape[-1]) for x in (teacher, student))
    return jax.tree.map(jnp.ravel, jax.lax.map(block, tuple(blocks)))


def log_probabilities(module, params, hidden: jax.Array) -> jax.Array:
    """Next-token log probabilities float32 `[A, V]` of final hidden states `[A, D]`."""
    logits = module.bind({"params": params}).logits(hidden[None])[0]
    return jax.nn.log_softmax(logits)


def kl_divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """KL(p || q) of each row, in nats."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


# ---- all questions of a batch at once, on the device


class Answers(NamedTuple):
    """What the teacher says to E examples' questions; of answers, at most N tokens each."""

    # int32 [E, Q, N], the stop token included; after it, whatever. NOT_FINITE where logits are not:
    # `generate.check_finite` on the host.
    tokens: jax.Array
    lengths: jax.Array  # int32 [E, Q], the stop token included
    hidden: jax.Array  # float32 [E, Q, N, D]: the states that predict the tokens
    probabilities: jax.Array  # float32 [E, Q, N]: of the tokens; after the stop token, whatever


def answer_batch(
    module,
    params,
    context_ExC: jax.Array,
    context_lengths_E: jax.Array,
    questions_ExQxR: jax.Array,
    question_lengths_ExQ: jax.Array,
    stop_ids: jax.Array,
    new_tokens: int,
) -> Answers:
    """Reads every example in full and answers all its questions greedily. Pure.

    Args:
      context_ExC: int32, preamble and documents end to end, padded.
      questions_ExQxR: int32, padded; R may be longer than the longest.
      stop_ids: int32; an answer ends with one of them or after `new_tokens` tokens.
    """
    answer = functools.partial(_answer_example, module, params, stop_ids, new_tokens)
    batch = (context_ExC, context_lengths_E, questions_ExQxR, question_lengths_ExQ)
    return sharding.over_examples(module.config, answer)(*batch)


def _answer_example(module, params, stop_ids, N: int, context_C, length, questions_QxR, lengths_Q):
    _, context = prefill_rows(module, params, (), context_C[None], length[None], jnp.int32(0))
    return decode_rows(
        module, params, (context,), length, questions_QxR, lengths_Q, stop_ids, new_tokens=N
    )


def decode_rows(
    module,
    params,
    context: Context,
    start,
    questions_QxR: jax.Array,
    lengths_Q: jax.Array,
    stop_ids: jax.Array,
    new_tokens: int,
    skipped_Q: jax.Array | None = None,
) -> Answers:
    """Greedy answers to questions as rows over one context, without the axis E. Pure.

    Args:
      start: int32 scalar, the position of a question's first token.
      skipped_Q: bool, questions that get answers of no tokens: no step waits for them.
    """
    bound, (Q, R), N = module.bind({"params": params}), questions_QxR.shape, new_tokens
    x, rows = prefill_rows(module, params, context, questions_QxR, lengths_Q, start)
    dtype = params["embedding"].dtype
    tail = kv_cache.write(kv_cache.init(module.config, Q, R + N, dtype), rows, jnp.int32(0))
    first = jnp.take_along_axis(x, (lengths_Q - 1)[:, None, None], axis=1)

    def step(state):
        i, x, done, count, tail, tokens, hidden, sure = state
        logits = bound.logits(x)[:, 0]
        token = likeliest(logits)
        sure = sure.at[:, i].set(probability(logits))
        tokens, hidden = tokens.at[:, i].set(token), hidden.at[:, i].set(x[:, 0])
        count += ~done
        done |= jnp.isin(token, stop_ids) | (token == NOT_FINITE)
        positions = (start + lengths_Q + i)[:, None]
        valid = jnp.ones((Q, 1), bool)
        embedded = bound.embed(jnp.maximum(token, 0)[:, None])
        x, tail = bound.run_layers(embedded, positions, valid, context, tail, R + i)
        return i + 1, x, done, count, tail, tokens, hidden, sure

    tokens = jnp.zeros((Q, N), jnp.int32)
    hidden = jnp.zeros((Q, N, x.shape[-1]))
    done = jnp.zeros(Q, bool) if skipped_Q is None else skipped_Q
    count, sure = jnp.zeros(Q, jnp.int32), jnp.zeros((Q, N))
    state = (jnp.int32(0), first, done, count, tail, tokens, hidden, sure)
    state = jax.lax.while_loop(lambda s: (s[0] < N) & ~s[2].all(), step, state)
    return Answers(state[5], state[3], state[6], state[7])


# ---- on disk, where an evaluation may stop and go on: the teacher runs once for an example

FORMAT = 1
SEAL = "sha256"  # an array beside the others


def targets(
    model: LanguageModel,
    example: EncodedExample,
    new_tokens: int,
    folder: epath.Path,
    stop_ids: Sequence[int] | None = None,
    buckets: Buckets = Buckets(),
) -> Targets:
    """The teacher's targets, read from `folder` or computed and written there.

    The file is named by all that they depend on, but for sizes, which change rounding alone: a
    restart or another run with the same model and data finds it. It carries a digest of them: where
    that is wrong or missing the teacher is asked again, and the file written anew.
    """
    key = identity.digest(
        {
            "format": FORMAT,
            "model": model.fingerprint,
            "dtype": str(model.dtype),
            "scan_layers": model.config.scan_layers,
            "preamble": example.preamble,
            "documents": example.documents,
            "questions": example.questions,
            "new_tokens": new_tokens,
            "stop_ids": stop_array(model, stop_ids).tolist(),
        }
    )
    path = folder / f"{key}.safetensors"
    try:
        return _read(path, key, example)
    except FileNotFoundError:
        pass
    except (Damaged, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        logging.warning("%s is damaged (%s): the teacher is asked again.", path, error)
    computed = teach(model, example, new_tokens, stop_ids, buckets)
    arrays = {
        "tokens": np.array([t for a in computed.answers for t in a], np.int32),
        "lengths": np.array([len(a) for a in computed.answers], np.int32),
        "hidden": computed.hidden,
    }
    write_whole(path, safetensors_numpy.save(arrays | {SEAL: _digest(key, arrays)}))
    return computed


def _read(path: epath.Path, key: str, example: EncodedExample) -> Targets:
    arrays = safetensors_numpy.load(path.read_bytes())
    if not np.array_equal(arrays.pop(SEAL, None), _digest(key, arrays)):
        raise Damaged("its digest is wrong or missing")
    return Targets(example, _split(arrays["tokens"], arrays["lengths"]), arrays["hidden"])


def _digest(key: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """SHA-256, uint8 `[32]`, of what the targets are of and of their names, shapes and bytes."""
    digest = hashlib.sha256(key.encode())
    for name, x in sorted(arrays.items()):
        digest.update(f"{name} {x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def encode(
    model: LanguageModel, template: Template, example: Example, soft_tokens: int, new_tokens: int
) -> EncodedExample:
    """The example as token ids; ValueError, which names it, if the model's context is too short.

    Args:
      soft_tokens: around each document, h + t.
      new_tokens: the longest answer.
    """
    encoded = encode_example(model.tokenizer, template, example)
    longest = max(map(len, encoded.questions)) + new_tokens
    try:
        model.check_length(encoded.context_length(soft_tokens) + longest)
    except ValueError as error:
        raise ValueError(f"Example {example.id}: {error}") from error
    return encoded


def _split(tokens: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]
