"""Greedy decoding on the device, in chunks that can be streamed."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvpacket_jax.packets.buckets import CHUNK
from kvpacket_jax.packets.prefill import Context, Prefilled
from models import LanguageModel, paged

NOT_FINITE = -2  # in place of a token; -1 stands for no stop (`stop_array`)


class Fresh(NamedTuple):
    """New tokens of each query, a stop token included, and the probability of each."""

    tokens: list[list[int]]
    probabilities: list[list[float]]


@functools.partial(jax.jit, static_argnames=("module",), donate_argnames=("tail",))
def _decode(module, params, context, tail, token_Q, position_Q, slot, done_Q, stop_ids):
    """CHUNK tokens after `token_Q`, fewer if all rows are done, and the probability of each.

    int32 and float32 `[Q, CHUNK]`; a token whose logits are not finite is NOT_FINITE.
    """
    bound = module.bind({"params": params})

    def step(state):
        i, token, done, tail, out, sure = state
        token = jnp.maximum(token, 0)  # of a row that is done, for its logits are not finite
        x, tail = bound.run_layers(
            bound.embed(token[:, None]),
            (position_Q + i)[:, None],
            jnp.ones((token.shape[0], 1), bool),
            context,
            tail,
            slot + i,
        )
        logits = bound.logits(x)[:, 0]
        token = likeliest(logits)
        done |= jnp.isin(token, stop_ids) | (token == NOT_FINITE)
        out, sure = out.at[:, i].set(token), sure.at[:, i].set(probability(logits))
        return i + 1, token, done, tail, out, sure

    shape = token_Q.shape[0], CHUNK
    out, sure = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
    state = (jnp.int32(0), token_Q, done_Q, tail, out, sure)
    _, token, done, tail, out, sure = jax.lax.while_loop(
        lambda s: (s[0] < CHUNK) & ~s[2].all(), step, state
    )
    return (out, sure), token, done, tail


@jax.jit
def _first(logits_QxV, stop_ids, is_real):
    token, sure = likeliest(logits_QxV), probability(logits_QxV)
    return (token, sure), jnp.isin(token, stop_ids) | (token == NOT_FINITE) | ~is_real


def likeliest(logits_QxV) -> jax.Array:
    """int32 `[Q]`; NOT_FINITE where the largest logit is no finite number, as where one is NaN."""
    token = jnp.argmax(logits_QxV, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.isfinite(logits_QxV.max(axis=-1)), token, NOT_FINITE)


def probability(logits_QxV) -> jax.Array:
    """float32 `[Q]`: that of the likeliest token."""
    return jnp.exp(logits_QxV.max(axis=-1) - jax.nn.logsumexp(logits_QxV, axis=-1))


def check_finite(model: LanguageModel, tokens) -> None:
    """Raises ValueError where one of the tokens, on the host, is NOT_FINITE."""
    if np.any(tokens == NOT_FINITE):
        raise ValueError(
            f"The logits of {model.name} are not finite numbers, so there is no next token: its "
            "weights, or an adapter or packet of its context, are damaged. launch.store verify "
            "says whether packets are."
        )


def chunks_needed(new_tokens: int) -> int:
    """Decoding programs run for that many tokens; the first token comes from the prefill."""
    return -(-(new_tokens - 1) // CHUNK)


def stop_array(model: LanguageModel, stop_ids: Sequence[int] | None) -> np.ndarray:
    """The ids that end an answer, the tokenizer's if None; int32, never empty."""
    if stop_ids is None and model.tokenizer is None:
        raise ValueError(f"{model.name} came without a tokenizer: say which ids end an answer.")
    ids = model.tokenizer.stop_ids if stop_ids is None else stop_ids
    return np.array(list(ids) or [-1], np.int32)


def stream(
    model: LanguageModel,
    context: Context,
    prefilled: Prefilled,
    new_tokens: int,
    stop_ids: Sequence[int] | None = None,
) -> Iterator[Fresh]:
    """Yields the new tokens of each query, some at a time.

    Consumes `prefilled`: its tail is donated. Raises ValueError if the tail has too little room, or
    for logits that are not finite.
    """
    needed = prefilled.slot + CHUNK * chunks_needed(new_tokens)
    if needed > prefilled.tail.num_slots:
        raise ValueError(
            f"{new_tokens} new tokens need {needed} slots, the request's tail has "
            f"{prefilled.tail.num_slots}: tell `prefill` how many tokens are to come (new_tokens)."
        )
    stops, num_queries = stop_array(model, stop_ids), prefilled.num_queries
    first, done = _first(prefilled.logits, stops, np.arange(len(prefilled.logits)) < num_queries)
    token = first[0]
    tail, slot, positions = prefilled.tail, prefilled.slot, prefilled.positions
    finished, left = [False] * num_queries, new_tokens
    block, sure = (np.asarray(x)[:, None] for x in first)
    for _ in range(1 + chunks_needed(new_tokens)):
        fresh = Fresh([[] for _ in range(num_queries)], [[] for _ in range(num_queries)])
        for q in range(num_queries):
            if finished[q]:
                continue
            for t, p in zip(block[q, :left].tolist(), sure[q].tolist(), strict=False):
                check_finite(model, t)
                fresh.tokens[q].append(t)
                fresh.probabilities[q].append(p)
                if t in stops:
                    finished[q] = True
                    break
        yield fresh
        left -= block.shape[1]
        if all(finished) or left <= 0:
            return
        # Every token reads the whole context. One that lies in pages is copied once for all tokens:
        # on two CPU cores, with 4,096 slots, a token then takes a seventh less.
        context = tuple(paged.ready(model.config, c) for c in context)
        out, token, done, tail = _decode(
            model.module,
            model.params,
            context,
            tail,
            token,
            positions,
            np.int32(slot),
            done,
            stops,
        )
        slot, positions = slot + CHUNK, positions + CHUNK
        block, sure = map(np.asarray, out)


def generate(
    model: LanguageModel,
    context: Context,
    prefilled: Prefilled,
    new_tokens: int,
    stop_ids: Sequence[int] | None = None,
) -> list[list[int]]:
    """All new tokens of each query, at most `new_tokens`, a stop token included."""
    answers = [[] for _ in range(prefilled.num_queries)]
    for fresh in stream(model, context, prefilled, new_tokens, stop_ids):
        for answer, tokens in zip(answers, fresh.tokens, strict=True):
            answer.extend(tokens)
    return answers
