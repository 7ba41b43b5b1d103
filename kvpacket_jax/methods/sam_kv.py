"""SAM-KV (arXiv 2508.11661): the blocks of each document that suit the query are kept, the rest
dropped, and what is kept is recomputed."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvpacket_jax.methods.base import Method, Prepared
from kvpacket_jax.methods.recompute import (
    Layout,
    check_layers,
    compose_with_room,
    finish,
    lay_out,
    prepared,
    qkv_at_layers,
    row_bucket,
)
from kvpacket_jax.packets.buckets import power_of_two
from kvpacket_jax.packets.packet import Packet
from models import kv_cache, rope
from models.kv_cache import KVCache


class Stored(NamedTuple):
    packets: list[Packet]
    queries: jax.Array  # float32 [P, J, N, H], padded: each chunk's at the J stable layers


@dataclasses.dataclass(frozen=True)
class SamKV(Method):
    """Every chunk counts, the preamble too; those of `initial + local` tokens or less stay whole.

    initial, local: the first and last tokens of a chunk, always kept.
    block: tokens between them that are kept or dropped together.
    theta: the weight of recomputed keys and values; the cached ones have the rest.
    first_layer, num_layers: the stable layers, whose queries and keys choose; None: the topmost.
      Above them what is kept is not recomputed.
    published: as the published code does it, which averages the wrong query heads for a key head,
      takes no block of a chunk all of whose blocks score better than its ends, and compares a
      chunk's queries at the positions where it was cached with the prompt's at its own.
    """

    initial: int = 8
    local: int = 16
    block: int = 8
    theta: float = 0.9
    first_layer: int | None = None
    num_layers: int = 4
    published: bool = False
    num_kept: Any = None  # not a setting: `resolved` fixes it, where it cannot be read

    def __post_init__(self):
        if min(self.local, self.block, self.num_layers) < 1 or self.initial < 0:
            raise ValueError(
                "local, block and num_layers are 1 or more, initial 0 or more; found "
                f"{self.local}, {self.block}, {self.num_layers} and {self.initial}."
            )
        if not 0 <= self.theta <= 1:
            raise ValueError(f"theta is a share, from 0 to 1; found {self.theta}.")

    def check(self, model) -> None:
        super().check(model)
        layers = self.layers(model.config)
        if layers.stop < model.config.num_layers:  # above, the query goes on alone
            check_layers(layers.stop, 1, model.config)

    def layers(self, config) -> range:
        first = self.first_layer
        first = max(0, config.num_layers - self.num_layers) if first is None else first
        return check_layers(first, self.num_layers, config)

    def arrange(self, model, packets) -> Stored:
        layers = self.layers(model.config)
        shape = (len(layers), model.config.num_heads, model.config.head_dim)
        queries = []
        for packet in packets:
            last = packet.manifest.tokens[-self.local :]
            ids = np.zeros(self.buckets.query(self.local), np.int32)
            ids[: len(last)] = last
            start, count = np.int32(packet.length - len(last)), np.int32(len(last))
            args = model.params, packet.cache, ids, start, count
            queries.append(_mean_queries(model.module, *args, layers=layers))
        padding = power_of_two(len(packets), 8) - len(packets)
        return Stored(list(packets), jnp.stack(queries + padding * [jnp.zeros(shape)]))

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        layout = lay_out(model, request, new_tokens, self.buckets)
        cache, selection = self._select(model, stored, layout)
        num_kept = self._num_kept(selection, layout)
        rows = row_bucket(num_kept + layout.query_rows, self.buckets)
        results = _run(
            model.module,
            model.params,
            cache,
            layout.padded_ids(0, cache.num_slots),
            selection["top"],
            np.int32(num_kept),
            np.int32(layout.length),
            np.int32(len(layout.query)),
            np.float32(self.theta),
            rows=rows,
            slots=self.buckets.recomputed_context(rows),
            query_rows=layout.query_rows,
            tail_slots=layout.tail_slots,
            layers=self.layers(model.config),
        )
        return prepared(layout, *results, selection)

    def resolved(self, model, stored, request) -> Method:
        arrays = jax.tree.leaves((model.params, stored))
        if self.num_kept is not None or any(isinstance(a, jax.ShapeDtypeStruct) for a in arrays):
            return self
        layout = lay_out(model, request, 0, self.buckets)
        selection = self._select(model, stored, layout)[1]
        return dataclasses.replace(self, num_kept=int(selection["kept"]))

    def _num_kept(self, selection, layout: Layout) -> int:
        if isinstance(selection["kept"], jax.core.Tracer):
            return layout.length if self.num_kept is None else self.num_kept  # all: a bound
        return int(selection["kept"])

    def _select(self, model, stored: Stored, layout: Layout) -> tuple[KVCache, dict]:
        """The composed context, and up to which layer each of its slots is kept."""
        cache = compose_with_room(model, stored.packets, layout)
        plan = _plan(layout, self, cache.num_slots, len(stored.queries))
        query = layout.padded_ids(layout.length, layout.query_rows)
        selection = _select(
            model.module,
            model.params,
            cache,
            stored.queries,
            query,
            plan,
            np.int32(len(layout.query)),
            layers=self.layers(model.config),
            published=self.published,
        )
        return cache, selection


@functools.partial(jax.jit, static_argnames=("module", "layers"))
def _mean_queries(module, params, cache, ids_T, start, count, layers: range) -> jax.Array:
    """The mean queries of a chunk's last tokens at its own positions: float32 `[J, N, H]`."""
    transformer = module.bind({"params": params})
    positions = (start + jnp.arange(len(ids_T)))[None]
    # The chunk's cache holds their keys and values: the rows themselves need not be seen.
    valid = jnp.zeros(positions.shape, bool)
    x = transformer.embed(ids_T[None])
    return _mean(qkv_at_layers(transformer, (cache,), x, positions, valid, layers), count)


def _mean(qkv, count) -> jax.Array:
    """The mean of the first `count` rows' queries, at each layer: float32 `[J, N, H]`."""
    q_JxTxNxH = jnp.stack([q[0] for q, _, _ in qkv])
    real = jnp.arange(q_JxTxNxH.shape[1]) < count
    return jnp.sum(q_JxTxNxH * real[:, None, None], axis=1) / count


class _Plan(NamedTuple):
    """What follows from lengths alone, in arrays of bucketed sizes: P chunks, U blocks, S slots."""

    chunk_S: np.ndarray  # int32, a slot's chunk
    block_S: np.ndarray  # int32, a slot's block; U where it is in none
    ends_S: np.ndarray  # bool, whether a slot is always kept
    background: np.ndarray  # int32, those slots, padded
    chunk_U: np.ndarray  # int32, ascending; P for padding
    rank_U: np.ndarray  # int32, the block's number in its chunk
    starts_P: np.ndarray  # int32
    num_chunks: np.int32
    length: np.int32


def _plan(layout: Layout, settings: SamKV, slots: int, chunks: int) -> _Plan:
    chunk_S, ends_S = np.zeros(slots, np.int32), np.zeros(slots, bool)
    block_S = np.full(slots, -1, np.int32)
    owner, rank = [], []
    for i, chunk in enumerate(layout.chunks):
        chunk_S[chunk] = i
        middle = chunk[settings.initial : len(chunk) - settings.local]
        if len(chunk) <= settings.initial + settings.local:
            middle = chunk[:0]
        count = -(-len(middle) // settings.block)
        block_S[middle] = len(owner) + np.arange(len(middle)) // settings.block
        ends_S[chunk] = True
        ends_S[middle] = False
        owner += [i] * count
        rank += range(count)
    size = power_of_two(len(owner), 64)
    chunk_U, rank_U = np.full(size, chunks, np.int32), np.zeros(size, np.int32)
    chunk_U[: len(owner)], rank_U[: len(owner)] = owner, rank
    end_slots = np.flatnonzero(ends_S)
    background = np.full(power_of_two(len(end_slots), 64), slots, np.int32)
    background[: len(end_slots)] = end_slots
    starts = np.zeros(chunks, np.int32)
    starts[: len(layout.chunks)] = [c.start for c in layout.chunks]
    block_S = np.where(block_S < 0, size, block_S)
    ints = np.int32(len(layout.chunks)), np.int32(layout.length)
    return _Plan(chunk_S, block_S, ends_S, background, chunk_U, rank_U, starts, *ints)


def _sparse(cache: KVCache, slots_R) -> KVCache:
    """Some slots of a cache, in that order; a number of S or more is an empty slot."""
    real = slots_R < cache.num_slots
    sparse = kv_cache.gather(cache, jnp.where(real, slots_R, 0))
    return sparse._replace(valid=sparse.valid & real)


@functools.partial(jax.jit, static_argnames=("module", "layers", "published"))
def _select(
    module, params, cache, queries_PxJxNxH, ids_T, plan, num_query, layers: range, published: bool
) -> dict[str, jax.Array]:
    """`top` int32 `[S]`: the highest stable layer at which a slot is kept, -1 where at none.

    `kept` is how many are; `share` `[P, J]` the share of a chunk's blocks that a layer would keep;
    `generic` `[J, N, H]` the query's mean queries over the ends of all chunks.
    """
    config, length = module.config, plan.length
    P = queries_PxJxNxH.shape[0]
    transformer = module.bind({"params": params})
    positions = (length + jnp.arange(len(ids_T)))[None]
    valid = positions < length + num_query
    ends = _sparse(cache, plan.background)
    x = transformer.embed(ids_T[None])
    qkv = qkv_at_layers(transformer, (ends,), x, positions, valid, layers)
    generic = _mean(qkv, num_query)
    if not published:
        move = functools.partial(rope.move, config)
        queries_PxJxNxH = jax.vmap(move)(queries_PxJxNxH, plan.starts_P)
    personal = _personal(config, queries_PxJxNxH, generic, plan.num_chunks, published)

    shares, chosen = [], []
    blocks = len(plan.chunk_U)
    here_PxU = plan.chunk_U == jnp.arange(P)[:, None]
    for j, layer in enumerate(layers):
        keys_SxKxH = cache.k[layer][0].astype(jnp.float32)
        scores_S = jnp.sum(keys_SxKxH * personal[:, j][plan.chunk_S], axis=(1, 2))
        anchor_P = _means(scores_S, jnp.where(plan.ends_S, plan.chunk_S, P), P)
        scores_U = _means(scores_S, plan.block_S, blocks)
        low = jnp.where(here_PxU, scores_U, jnp.inf).min(axis=1)
        high = jnp.where(here_PxU, scores_U, -jnp.inf).max(axis=1)
        share = (high - anchor_P) / (high - low + 1e-8)
        inside = (low < anchor_P) & (anchor_P <= high)
        share = jnp.where(inside, share, 0.0) if published else jnp.clip(share, 0.0, 1.0)
        shares.append(jnp.where(here_PxU.any(axis=1), share, 0.0))
        # The best of each chunk first, the chunks in their order.
        chosen.append(jax.lax.sort((plan.chunk_U, -scores_U, jnp.arange(blocks)), num_keys=2)[2])
    shares_PxJ = jnp.stack(shares, axis=1)
    count_P = jnp.sum(here_PxU, axis=1)
    wanted_P = (jnp.mean(shares_PxJ, axis=1) * count_P).astype(jnp.int32)
    wanted_U = plan.rank_U < jnp.append(wanted_P, 0)[plan.chunk_U]
    top = jnp.full(cache.num_slots, -1)
    for layer, order in zip(layers, chosen, strict=True):
        taken = jnp.zeros(blocks + 1, bool).at[order].set(wanted_U, unique_indices=True)
        top = jnp.where(plan.ends_S | taken[plan.block_S], layer, top)
    kept = jnp.sum(top >= 0)
    return {"top": top, "kept": kept, "share": shares_PxJ, "generic": generic}


def _personal(config, queries_PxJxNxH, generic_JxNxH, num_chunks, published: bool):
    """Each chunk's query for its blocks: float32 `[P, J, K, H]`.

    The prompt's query, and the mean of the other chunks' as far as they agree with it.
    """
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    agree = _cosine(queries_PxJxNxH, generic_JxNxH)
    real = jnp.arange(len(queries_PxJxNxH)) < num_chunks
    weighted = queries_PxJxNxH * jnp.abs(agree) * real[:, None, None, None]
    others = (weighted.sum(axis=0) - weighted) / jnp.maximum(num_chunks - 1, 1)
    personal = others + generic_JxNxH
    if published:
        return personal.reshape(*personal.shape[:2], N // K, K, H).mean(axis=2)
    return personal.reshape(*personal.shape[:2], K, N // K, H).mean(axis=3)


def _cosine(a, b):
    norm = functools.partial(jnp.linalg.norm, axis=-1, keepdims=True)
    product = jnp.sum(a * b, axis=-1, keepdims=True)
    return product / (jnp.maximum(norm(a), 1e-8) * jnp.maximum(norm(b), 1e-8))


def _means(values_S, group_S, groups: int) -> jax.Array:
    """Means over the slots of each group: float32 `[groups]`, 0 for one without."""
    total = jax.ops.segment_sum(values_S, group_S, groups + 1)[:groups]
    count = jax.ops.segment_sum(jnp.ones_like(values_S), group_S, groups + 1)[:groups]
    return total / jnp.maximum(count, 1)


@functools.partial(
    jax.jit,
    static_argnames=("module", "rows", "slots", "query_rows", "tail_slots", "layers"),
)
def _run(
    module,
    params,
    cache,
    ids_S,
    top_S,
    num_kept,
    length,
    num_query,
    theta,
    rows: int,
    slots: int,
    query_rows: int,
    tail_slots: int,
    layers: range,
):
    """Recomputes what is kept, and the query after it, in a cache without the rest."""
    S, row = cache.num_slots, jnp.arange(rows)
    places = jnp.arange(S)
    query = (places >= length) & (places < length + num_query)
    top_S = jnp.where(query, module.config.num_layers, top_S)
    places = jnp.sort(jnp.where(top_S >= 0, places, S + places))[:rows]
    kept = _sparse(cache, jnp.where(places < length, places, S))
    kept = kv_cache.resize(kept, slots)
    real = places < S
    positions = jnp.where(real, places, 0)[None]
    top = jnp.where(real, top_S[jnp.minimum(places, S - 1)], -1)
    share = jnp.where(places < length, theta, 1.0)
    transformer = module.bind({"params": params})
    x = transformer.embed(jnp.take(ids_S, places, mode="clip")[None])
    run_layers = transformer.run_layers
    # Up to the first stable layer all are recomputed; then those kept at that layer or above.
    x, kept = run_layers(x, positions, real[None], (), kept, 0, range(layers[0] + 1), share)
    for layer in layers[1:]:
        at = jnp.where(top >= layer, row, slots + row)
        x, kept = run_layers(x, positions, real[None], (), kept, at, range(layer, layer + 1), share)
    last = num_kept + num_query - 1
    if layers.stop < module.config.num_layers:  # only the query goes on
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=query_rows, axis=1)
        x, positions, real = (cut(a, num_kept) for a in (x, positions, real[None]))
        above = range(layers.stop, module.config.num_layers)
        x, kept = run_layers(x, positions, real, (), kept, num_kept, above)
        last = num_query - 1
    return finish(transformer, kept, x, last, num_kept, query_rows, tail_slots)
