"""Paged: a context whose slots lie in pages of a pool and are read where they lie.

A pool is a KVCache whose batch rows are pages; a context may have any of them, each at a position
of its own. Scores depend on differences of positions alone, so each layer rotates either the rows'
queries, once for each page, or its keys, whichever are fewer: nothing of the context's size
outlives the layer. (With pages of 16 slots, 8 rows and two query heads a key head it is the keys.)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models import rope
from models.attention import Kernel, Segment
from models.kv_cache import SLOTS, KVCache


class Paged(NamedTuple):
    """`n` pages as one context of batch 1; only read."""

    pool: KVCache  # N pages of S slots as batch rows, at positions of their own
    # int32 [n]: the pages, in any order, -1 for none; None: all N as they lie, which spares a copy.
    table: jax.Array | None
    starts: jax.Array  # int32 [n]: what is added to the positions of each

    @property
    def num_slots(self) -> int:
        return self.starts.shape[-1] * self.pool.num_slots

    @property
    def layers(self):
        """Keys, values and biases as run_layers walks them."""
        return self.pool.k, self.pool.v, self.pool.bias


def ready(config, context: KVCache | Paged) -> KVCache:
    """A context as a cache of its own, which a Paged one is copied to."""
    return copied(config, context) if isinstance(context, Paged) else context


@functools.partial(jax.jit, static_argnames="config")
def copied(config, context: Paged) -> KVCache:
    """The context as a cache of its own, every key moved: the copy that reading in place spares."""
    pool, many = context.pool, context.pool.num_slots * config.num_kv_heads
    layer = lambda k, v, bias: segment(config, context, k, v, bias, many)  # noqa: E731
    if isinstance(pool.k, tuple):
        biases = pool.bias or (None,) * len(pool.k)
        parts = [layer(*arrays) for arrays in zip(pool.k, pool.v, biases, strict=True)]
        k, v = (tuple(getattr(p, name) for p in parts) for name in "kv")
        bias = pool.bias and tuple(p.bias for p in parts)
        return KVCache(k, v, parts[0].positions, parts[0].valid, bias)
    part = jax.vmap(layer)(pool.k, pool.v, pool.bias)
    return KVCache(part.k, part.v, part.positions[0], part.valid[0], part.bias)


def segment_or_kernel(
    config, context: Paged, k: jax.Array, v: jax.Array, bias, rows: int
) -> Segment | Kernel:
    """`segment`, or where `config.paged_kernel` asks for it and can, the kernel in its place."""
    plain = functools.partial(segment, config, context, k, v, bias, rows)
    if not config.paged_kernel or context.table is not None or bias is not None:
        return plain()
    from models import paged_kernel  # Pallas is a tenth of the time that importing models takes

    if not paged_kernel.fits(config, k):
        return plain()
    pool = context.pool

    def attended(q_KxXxH, positions_X):
        given = k, v, context.starts, pool.positions, pool.valid
        return paged_kernel.attend_pages(config, q_KxXxH, positions_X, *given)

    return Kernel(attended)


def segment(config, context: Paged, k: jax.Array, v: jax.Array, bias, rows: int) -> Segment:
    """One layer of the context for `attend`.

    Args:
      k, v: the pool's of this layer, `[N, S, K, H]`; bias: `[N, K, S]` or None.
      rows: queries that are to attend, all heads' and batch rows' counted.
    """
    n, (S, K), table = context.starts.shape[0], k.shape[SLOTS:-1], context.table
    take = lambda x: x if table is None else jnp.take(x, table, axis=0, mode="clip")  # noqa: E731
    flat = lambda x: x.reshape(1, n * S, *x.shape[2:])  # noqa: E731
    positions = take(context.pool.positions) + context.starts[:, None]
    valid = take(context.pool.valid)
    if table is not None:
        valid &= (table >= 0)[:, None]
    if bias is not None:
        bias = jnp.moveaxis(take(bias), 1, 0).reshape(1, K, n * S)
    k, turns = take(k), None
    if rows < S * K:
        turns = rope.turns(config, context.starts)
    else:
        k = rope.move(config, k, context.starts[:, None, None])
    return Segment(flat(k), flat(take(v)), flat(positions), flat(valid), bias, turns)
