"""Selective recomputation: some tokens of a composed context run again, the query with them.

In a context laid end to end a token's slot, its position and its index among the request's tokens
are one number. Rows go by it: they are written over what stands in their slots, and see what is
before them, fresh or stale. The context is one buffer with room for the query's rows behind it.
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

from kvpacket_jax.methods.base import Method, Prepared, Request, store_preamble
from kvpacket_jax.packets.buckets import Buckets, bucket, power_of_two, round_up
from kvpacket_jax.packets.compose import compose, slots_needed
from kvpacket_jax.packets.packet import Packet, build_packets, check_ids
from kvpacket_jax.packets.prefill import Prefilled
from models import LanguageModel, kv_cache
from models.kv_cache import KVCache


class Recomputing(Method):
    """A method that begins with the bare caches of the chunks. The query may decide what follows:
    where it does not, and is a `SharedMethod` as well, no row of the context has seen the query.
    """

    def store(self, model, preamble, documents) -> list[Packet]:
        return store_preamble(model, preamble) + build_packets(model, None, documents)


class Layout(NamedTuple):
    """A request's tokens end to end: the chunks, then the query. All on the host.

    The first chunk, the preamble if there is one, is exact as it is and never recomputed.
    """

    ids: np.ndarray  # int32, of the chunks and the query
    chunks: tuple[range, ...]
    query: range
    new_tokens: int

    @property
    def length(self) -> int:
        """Of the context: where the query begins."""
        return self.query.start

    @property
    def first(self) -> int:
        """Where the tokens begin that may be recomputed."""
        return self.chunks[0].stop if self.chunks else 0

    @property
    def query_rows(self) -> int:
        return Buckets().query(len(self.query))

    @property
    def tail_slots(self) -> int:
        return Buckets().tail(self.query_rows, self.new_tokens)

    def share(self, ratio: float) -> int:
        """How many tokens are that share of those that may be recomputed."""
        return int(ratio * (self.length - self.first))

    def padded_ids(self, start: int, size: int) -> np.ndarray:
        """int32 `[size]`, from token `start` on."""
        ids = np.zeros(size, np.int32)
        there = self.ids[start : start + size]
        ids[: len(there)] = there
        return ids


def lay_out(model: LanguageModel, request: Request, new_tokens: int) -> Layout:
    """Raises ValueError for a query, or a request, that the model cannot take."""
    check_ids(model, request.query, "The query")
    parts = ([request.preamble] if request.preamble else []) + list(request.documents)
    ends = np.cumsum([0, *map(len, parts), len(request.query)]).tolist()
    model.check_length(ends[-1] + new_tokens)
    spans = [range(a, b) for a, b in itertools.pairwise(ends)]
    ids = np.array([t for part in (*parts, request.query) for t in part], np.int32)
    return Layout(ids, tuple(spans[:-1]), spans[-1], new_tokens)


def check_ratio(ratio: float) -> None:
    """Raises ValueError for what is no share."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is a share of the tokens, from 0 to 1; found {ratio}.")


def check_layers(first: int, number: int, config) -> range:
    """`number` layers from `first` on, fewer where the model ends; ValueError if there are none."""
    stop = min(first + number, config.num_layers)
    if not 0 <= first < stop:
        raise ValueError(
            f"first_layer is {first}; the model's layers go from 0 to {config.num_layers - 1}."
        )
    return range(first, stop)


def compose_with_room(
    model: LanguageModel, packets: Sequence[Packet], layout: Layout, rows: int = 0
) -> KVCache:
    """The packets side by side, with room for the query's rows, and `rows` from `first` on.

    Raises ValueError if they are not those of the request's chunks.
    """
    found, expected = [p.length for p in packets], [len(c) for c in layout.chunks]
    if found != expected:
        raise ValueError(
            f"The stored caches are {found} tokens long, the request's preamble and documents "
            f"{expected}: they were made of others."
        )
    need = max(slots_needed(packets), layout.length + layout.query_rows, layout.first + rows)
    return compose(model, packets, slots=context_slots(need))[0]


def side_by_side(model: LanguageModel, caches: Sequence[KVCache], starts: Sequence[int], need: int):
    """Caches written one after the other at `starts`, nothing moved: `need` slots or more."""
    ends = [start + cache.num_slots for cache, start in zip(caches, starts, strict=True)]
    context = _empty(model.config, 1, context_slots(max([need, *ends])), model.dtype)
    for cache, start in zip(caches, starts, strict=True):  # the next one overwrites padding
        context = _append(context, cache, np.int32(start))
    return context


_empty = jax.jit(kv_cache.init, static_argnames=("config", "batch", "slots", "dtype"))
_append = jax.jit(kv_cache.write, donate_argnames=("cache",))


def row_bucket(rows: int) -> int:
    """Rows of one pass: at most 10 % of padding, but a few rows are as good as none."""
    return max(32, bucket(rows))


LEAST_SLOTS = 512  # of a context: below, padding costs little


def context_slots(slots: int) -> int:
    """A context's bucket. Eight between doublings, for many rows attend to all of it.

    Its steps are powers of two, as those of `bucket`: the rows of a whole context fit.
    """
    step = power_of_two(slots, LEAST_SLOTS) // 16
    return max(LEAST_SLOTS, round_up(slots, step))


# ---- parts of jitted programs


def choose(scores_S, first, length, num_selected, num_query, rows: int) -> jax.Array:
    """The slots of the best-scored tokens and of the query behind them, ascending: int32 `[R]`.

    Args:
      scores_S: float32; only those of slots from `first` to `length` count.
      num_selected: how many tokens, of no more than there are; num_query: the query's, or 0.

    Returns:
      Padding is S and more, slots that drop their row.
    """
    S = scores_S.shape[0]
    slots = jnp.arange(S)
    scores = jnp.where((slots >= first) & (slots < length), scores_S, -jnp.inf)
    scores = jnp.where((slots >= length) & (slots < length + num_query), jnp.inf, scores)
    best = jnp.argsort(-scores)[:rows]  # stable: of equals the first
    return jnp.sort(jnp.where(jnp.arange(rows) < num_selected + num_query, best, S + slots[:rows]))


def run_rows(module, params, cache: KVCache, x, slots_R, layers=None) -> tuple[jax.Array, KVCache]:
    """Rows `[1, R, D]` through layers, written over what stands in their slots."""
    real = slots_R < cache.num_slots
    positions = jnp.where(real, slots_R, 0)[None]
    variables = {"params": params}
    return module.apply(
        variables, x, positions, real[None], (), cache, slots_R, layers, method="run_layers"
    )


def asked(module, params, context, x, positions_BxT, valid_BxT, layers: range):
    """What rows behind a context ask and answer at some layers: `(q, k, v)` of each (`qkv`).

    They run through the layers below, and each sees those before it; nothing of theirs is kept.
    """
    apply = functools.partial(module.apply, {"params": params})
    tail = kv_cache.init(module.config, *positions_BxT.shape, params["embedding"].dtype)
    found, start = [], 0
    for layer in layers:
        below = range(start, layer)
        x, tail = apply(x, positions_BxT, valid_BxT, context, tail, 0, below, method="run_layers")
        found.append(apply(x, positions_BxT, layer, method="qkv"))
        start = layer
    return found


def finish(module, params, cache: KVCache, x, last, length, query_rows: int, tail_slots: int):
    """Behind the last layer: the query's logits, and its rows cut out of the context.

    Args:
      last: the query's last row in `x`; length: of the context.

    Returns:
      Logits float32 `[1, V]`, the tail, and the context without the query.
    """
    row = jax.lax.dynamic_slice_in_dim(x, last, 1, axis=1)
    logits = module.apply({"params": params}, row, method="logits")[:, 0]
    tail = kv_cache.gather(cache, length + jnp.arange(query_rows))
    before = jnp.arange(cache.num_slots) < length
    return logits, kv_cache.resize(tail, tail_slots), cache._replace(valid=cache.valid & before)


# ---- from a program's results to what `prepare` returns


def prepared(layout: Layout, logits, tail: KVCache, context: KVCache, info: dict[str, Any]):
    """A request whose query ran in the method's own pass."""
    position = np.array([layout.query.stop], np.int32)
    ready = Prefilled(1, logits, tail, layout.query_rows, position)
    return Prepared((context,), layout.length, ready, info)


def run_scored(
    program, model: LanguageModel, layout: Layout, cache: KVCache, ids: np.ndarray, ratio: float
) -> Prepared:
    """Runs a program that scores the tokens behind the first chunk and recomputes the best.

    Args:
      program: made by `scored`.
      cache: the composed context, which the program may overwrite.
      ids: int32, of the tokens that it needs, padded.
      ratio: the share of those tokens that is recomputed.
    """
    selected, queries = layout.share(ratio), len(layout.query)
    chosen, scores, *results = program(
        model.module,
        model.params,
        cache,
        ids,
        *map(np.int32, (layout.first, layout.length, selected, queries)),
        rows=row_bucket(selected + queries),
        query_rows=layout.query_rows,
        tail_slots=layout.tail_slots,
    )
    return prepared(layout, *results, {"selected": chosen, "scores": scores})


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
    x = module.apply({"params": params}, ids_R[None], method="embed")
    x, cache = run_rows(module, params, cache, x, slots_R)
    return finish(module, params, cache, x, last, length, query_rows, tail_slots)


def recompute(
    model: LanguageModel, packets: Sequence[Packet], layout: Layout, selected: Sequence[int]
) -> Prepared:
    """Runs the tokens `selected` (ascending, chosen on the host) and the query, in one pass."""
    cache = compose_with_room(model, packets, layout)
    real = np.array([*selected, *layout.query], np.int32)
    slots = cache.num_slots + np.arange(row_bucket(len(real)), dtype=np.int32)  # padding is dropped
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
