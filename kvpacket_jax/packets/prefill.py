"""prefill(): the query's forward pass over a context, to the first token's logits."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvpacket_jax.packets.buckets import Buckets, power_of_two, round_up, whole_chunks
from kvpacket_jax.packets.packet import check_ids
from models import LanguageModel, kv_cache
from models.kv_cache import KVCache
from models.paged import Paged

Context = tuple[KVCache | Paged, ...]


class Prefilled(NamedTuple):
    """A request that is ready to decode; its queries are the first of Q rows."""

    num_queries: int
    logits: jax.Array  # float32 [Q, V], of the first new token
    tail: KVCache  # the queries' keys and values, and room for the answers'
    slot: int  # the first free slot of `tail`
    positions: np.ndarray  # int32 [Q], of the first new token


def prefill_rows(module, params, context: Context, ids_QxT, lengths_Q, start):
    """Rows of token ids after a context. Pure; training and every method call it.

    Args:
      ids_QxT: int32, padded on the right; lengths_Q: int32.
      start: int32, the position of the first id: a scalar, or of each row, `[Q, 1]`.

    Returns:
      Hidden states float32 `[Q, T, D]`, and the rows' own cache of T slots.
    """
    bound = module.bind({"params": params})
    Q, T = ids_QxT.shape
    offsets = jnp.broadcast_to(jnp.arange(T), (Q, T))
    rows = kv_cache.init(module.config, Q, T, params["embedding"].dtype)
    valid = offsets < lengths_Q[:, None]
    x = bound.embed(ids_QxT)
    return bound.run_layers(x, start + offsets, valid, context, rows, 0)


@functools.partial(jax.jit, static_argnames=("module", "slots"))
def prefill_program(module, params, context, ids_QxT, lengths_Q, start, slots: int):
    """What `prefill` runs: logits float32 `[Q, V]` of each row's last token, and the tail."""
    x, rows = prefill_rows(module, params, context, ids_QxT, lengths_Q, start)
    # Room for an answer comes only now: the rows would have attended to its empty slots.
    tail = kv_cache.init(module.config, len(ids_QxT), slots, params["embedding"].dtype)
    tail = kv_cache.write(tail, rows, jnp.int32(0))
    last = jnp.take_along_axis(x, (lengths_Q - 1)[:, None, None], axis=1)
    logits = module.bind({"params": params}).logits(last)
    return logits[:, 0], tail


def prefill(
    model: LanguageModel,
    context: Context,
    queries: Sequence[Sequence[int]],
    start: int,
    new_tokens: int = 0,
    buckets: Buckets = Buckets(),
    rows: int | None = None,
    slots: int | None = None,
) -> Prefilled:
    """Queries as rows over one shared context.

    Args:
      queries: token ids of each; up to four are padded to a power of two, more by fours.
      start: the position of their first token.
      new_tokens: how many are to be decoded afterwards; sizes the tail beyond its usual capacity.
      rows: pads the queries to this many tokens, with a tail that holds no more than them and the
        new tokens, instead of the buckets that requests share.
      slots: with `rows`, those of the tail, if it is to be larger.

    Raises:
      ValueError: an empty query, ids outside the vocabulary, or a request longer than the model's
        context.
    """
    if not queries:
        raise ValueError("No query was given: there is nothing to answer.")
    for i, query in enumerate(queries):
        check_ids(model, query, f"Query {i}")
    lengths = np.array([len(q) for q in queries], np.int32)
    model.check_length(start + int(lengths.max()) + new_tokens)
    if rows is None:
        rows = buckets.query(int(lengths.max()))
        slots = buckets.tail(rows, new_tokens)
    else:
        slots = max(slots or 0, rows + whole_chunks(new_tokens))
    ids, lengths = pad_rows(queries, rows)
    logits, tail = prefill_program(
        model.module,
        model.params,
        context,
        ids,
        lengths,
        np.int32(start),
        slots=slots,
    )
    return Prefilled(len(queries), logits, tail, rows, start + lengths)


def rows_of(queries: int) -> int:
    """Rows that so many queries are padded to."""
    return power_of_two(queries, 1) if queries <= 4 else round_up(queries, 4)


def pad_rows(sequences: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 ids `[Q', width]` and lengths `[Q']`, Q' as in `prefill`; added rows have length 1."""
    count = rows_of(len(sequences))
    ids, lengths = np.zeros((count, width), np.int32), np.ones(count, np.int32)
    for i, sequence in enumerate(sequences):
        lengths[i] = len(sequence)
        ids[i, : lengths[i]] = sequence
    return ids, lengths
