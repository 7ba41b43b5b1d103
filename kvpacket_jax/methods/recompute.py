"""Selective recomputation: some tokens of a composed context run again, the query with them.

In a context laid end to end a token's slot, its position and its index among the request's tokens
are one number. Rows go by it: they are written over what their slots hold, and see what is
before them, fresh or stale. The context is one buffer with room for the query's rows after it.
After the pass they are cut out into the request's tail, which decoding appends to.

Shapes: R rows, S slots of the buffer, T the query's bucket.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvpacket_jax.methods.base import Prepared, Request
from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.compose import compose, slots_needed
from kvpacket_jax.packets.packet import Packet, check_ids
from kvpacket_jax.packets.prefill import Context, Prefilled
from models import LanguageModel, kv_cache
from models.kv_cache import KVCache
from models.transformer import Transformer


class Layout(NamedTuple):
    """A request's tokens end to end: the chunks, then the query. All on the host.

    The first chunk is exact as it is and never recomputed.
    """

    ids: np.ndarray  # int32, of the chunks and the query
    chunks: tuple[range, ...]  # as `Request.chunks`
    first_document: int  # as `Request.first_document`
    query: range
    new_tokens: int
    buckets: Buckets

    @property
    def length(self) -> int:
        """Length of the context: where the query begins."""
        return self.query.start

    @property
    def first(self) -> int:
        """Where the tokens begin that may be recomputed."""
        return self.chunks[0].stop if self.chunks else 0

    @property
    def query_rows(self) -> int:
        return self.buckets.query(len(self.query))

    @property
    def tail_slots(self) -> int:
        return self.buckets.tail(self.query_rows, self.new_tokens)

    def share(self, ratio: float) -> int:
        """How many tokens are that share of those that may be recomputed."""
        return int(ratio * (self.length - self.first))

    def padded_ids(self, start: int, size: int) -> np.ndarray:
        """int32 `[size]`, from token `start` on."""
        ids = np.zeros(size, np.int32)
        tokens = self.ids[start : start + size]
        ids[: len(tokens)] = tokens
        return ids


def lay_out(model: LanguageModel, request: Request, new_tokens: int, buckets: Buckets) -> Layout:
    """Raises ValueError for a query, or a request, that the model cannot take."""
    check_ids(model, request.query, "The query")
    parts = [*request.chunks, request.query]
    ends = np.cumsum([0, *map(len, parts)]).tolist()
    model.check_length(ends[-1] + new_tokens)
    *chunks, query = (range(a, b) for a, b in itertools.pairwise(ends))
    ids = np.array([t for part in parts for t in part], np.int32)
    return Layout(ids, tuple(chunks), request.first_document, query, new_tokens, buckets)


def check_ratio(ratio: float) -> None:
    """Raises ValueError for a ratio that is not from 0 to 1."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is a share of the tokens, from 0 to 1; found {ratio}.")


def check_layers(first: int, number: int, config) -> range:
    """`number` layers from `first` on, fewer where the model ends; ValueError if there are none."""
    stop = min(first + number, config.num_layers)
    if not 0 <= first < stop:
        raise ValueError(
            f"The method needs layer {first}; the model's go from 0 to {config.num_layers - 1}."
        )
    layers = range(first, stop)
    if shared := [i for i in layers if config.shares(i)]:
        raise ValueError(
            f"The method goes by the keys of layers {first} to {stop - 1}; layer {shared[0]} has "
            "none, for it shares another's attention weights (shared_layers). Choose other layers, "
            "or leave the method out."
        )
    return layers


def check_lengths(stored: Sequence[int], layout: Layout) -> None:
    """Raises ValueError for caches of other lengths than the request's chunks have."""
    expected = [len(chunk) for chunk in layout.chunks]
    if stored != expected:
        raise ValueError(
            f"The stored caches are {stored} tokens long, the request's preamble and documents "
            f"{expected}: they were made of others."
        )


def compose_with_room(
    model: LanguageModel, packets: Sequence[Packet], layout: Layout, rows: int = 0
) -> KVCache:
    """The packets side by side, with room for the query's rows, and `rows` from `first` on.

    Raises ValueError if they are not those of the request's chunks.
    """
    check_lengths([p.length for p in packets], layout)
    need = max(slots_needed(packets), layout.length + layout.query_rows, layout.first + rows)
    return compose(model, packets, slots=layout.buckets.recomputed_context(need))[0]


def side_by_side(model: LanguageModel, caches: Sequence[KVCache], layout: Layout) -> KVCache:
    """The caches of a request's chunks one after the other, not moved."""
    starts = [chunk.start for chunk in layout.chunks]
    ends = [start + cache.num_slots for cache, start in zip(caches, starts, strict=True)]
    slots = layout.buckets.recomputed_context(max([layout.length, *ends]))
    context = _empty(model.config, 1, slots, model.dtype)
    for cache, start in zip(caches, starts, strict=True):  # the next one overwrites padding
        context = _append(context, cache, np.int32(start))
    return context


_empty = jax.jit(kv_cache.init, static_argnames=("config", "batch", "slots", "dtype"))
_append = jax.jit(kv_cache.write, donate_argnames=("cache",))


def row_bucket(rows: int, buckets: Buckets) -> int:
    """Rows of one pass: as `Buckets.rows`, but few rows cost as much as 32."""
    return max(32, buckets.rows(rows))


# ---- parts of jitted programs; `transformer` is a module bound to its parameters


def choose(scores_S, first, length, num_selected, num_query, rows: int) -> jax.Array:
    """The slots of the best-scored tokens and of the query after them, ascending: int32 `[R]`.

    Args:
      scores_S: float32; only those of slots from `first` to `length` count.
      num_selected: how many tokens, at most as many as there are; num_query: the query's, or 0.

    Returns:
      Padding is S and more, slots that drop their row.
    """
    S = scores_S.shape[0]
    slots = jnp.arange(S)
    scores = jnp.where((slots >= first) & (slots < length), scores_S, -jnp.inf)
    scores = jnp.where((slots >= length) & (slots < length + num_query), jnp.inf, scores)
    best = jnp.argsort(-scores)[:rows]  # stable: of equals the first
    return jnp.sort(jnp.where(jnp.arange(rows) < num_selected + num_query, best, S + slots[:rows]))


def run_rows(
    transformer: Transformer, cache: KVCache, x, slots_R, layers: range | None = None
) -> tuple[jax.Array, KVCache]:
    """Rows `[1, R, D]` through layers, written over what their slots hold."""
    real = slots_R < cache.num_slots
    positions = jnp.where(real, slots_R, 0)[None]
    return transformer.run_layers(x, positions, real[None], (), cache, slots_R, layers)


def qkv_at_layers(
    transformer: Transformer, context: Context, x, positions_BxT, valid_BxT, layers: range
) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
    """Queries, keys and values `(q, k, v)` of rows after a context, at some layers (`Block.qkv`).

    The rows run through the layers below, and each sees those before it; their caches are dropped.
    """
    tail = kv_cache.init(transformer.config, *positions_BxT.shape, transformer.embedding.dtype)
    qkv, start = [], 0
    for layer in layers:
        below = range(start, layer)
        x, tail = transformer.run_layers(x, positions_BxT, valid_BxT, context, tail, 0, below)
        qkv.append(transformer.qkv(x, positions_BxT, layer))
        start = layer
    return qkv


def finish(
    transformer: Transformer, cache: KVCache, x, last, length, query_rows: int, tail_slots: int
) -> tuple[jax.Array, KVCache, KVCache]:
    """After the last layer: the query's logits, and its rows cut out of the context.

    Args:
      last: the query's last row in `x`; length: of the context.

    Returns:
      Logits float32 `[1, V]`, the tail, and the context without the query.
    """
    row = jax.lax.dynamic_slice_in_dim(x, last, 1, axis=1)
    logits = transformer.logits(row)[:, 0]
    tail = kv_cache.gather(cache, length + jnp.arange(query_rows))
    before = jnp.arange(cache.num_slots) < length
    return logits, kv_cache.resize(tail, tail_slots), cache._replace(valid=cache.valid & before)


# ---- from a program's results to what `prepare` returns


def prepared(layout: Layout, logits, tail: KVCache, context: KVCache, info: dict[str, Any]):
    """A request whose query ran in the method's own pass."""
    position = np.array([layout.query.stop], np.int32)
    prefilled = Prefilled(1, logits, tail, layout.query_rows, position)
    return Prepared((context,), layout.length, prefilled, info)


def run_scored(
    program, model: LanguageModel, layout: Layout, cache: KVCache, ids: np.ndarray, ratio: float
) -> Prepared:
    """Runs a program that scores the tokens after the first chunk and recomputes the best.

    Args:
      program: a function that `scored` compiles.
      cache: the composed context, which the program may overwrite.
      ids: int32, of the tokens that it needs, padded.
      ratio: the share of those tokens that is recomputed.
    """
    selected, queries = layout.share(ratio), len(layout.query)
    slots, scores, *results = program(
        model.module,
        model.params,
        cache,
        ids,
        *map(np.int32, (layout.first, layout.length, selected, queries)),
        rows=row_bucket(selected + queries, layout.buckets),
        query_rows=layout.query_rows,
        tail_slots=layout.tail_slots,
    )
    return prepared(layout, *results, {"selected": slots, "scores": scores})


# Of (module, params, cache, ids, first, length, num_selected, num_query, rows, query_rows,
# tail_slots) -> (slots, scores, *finish's results).
scored = functools.partial(
    jax.jit,
    static_argnames=("module", "rows", "query_rows", "tail_slots"),
    donate_argnames=("cache",),
)


@functools.partial(
    jax.jit,
    static_argnames=("module", "query_rows", "tail_slots"),
    donate_argnames=("cache",),
)
def _recompute(
    module, params, cache, ids_R, slots_R, last, length, query_rows: int, tail_slots: int
):
    transformer = module.bind({"params": params})
    x, cache = run_rows(transformer, cache, transformer.embed(ids_R[None]), slots_R)
    return finish(transformer, cache, x, last, length, query_rows, tail_slots)


def recompute(
    model: LanguageModel, packets: Sequence[Packet], layout: Layout, selected: Sequence[int]
) -> Prepared:
    """Runs the tokens `selected` (ascending, chosen on the host) and the query, in one pass."""
    cache = compose_with_room(model, packets, layout)
    real = np.array([*selected, *layout.query], np.int32)
    rows = row_bucket(len(real), layout.buckets)
    slots = cache.num_slots + np.arange(rows, dtype=np.int32)  # padding is dropped
    slots[: len(real)] = real
    ids = np.zeros(len(slots), np.int32)
    ids[: len(real)] = layout.ids[real]
    logits, tail, context = _recompute(
        model.module,
        model.params,
        cache,
        ids,
        slots,
        np.int32(len(real) - 1),
        np.int32(layout.length),
        query_rows=layout.query_rows,
        tail_slots=layout.tail_slots,
    )
    return prepared(layout, logits, tail, context, {"selected": np.array(selected, np.int32)})
