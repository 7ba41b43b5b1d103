"""KVCache: keys and values with what decides who may see them. Only this module knows its layout.

`k` and `v` are a tuple of L arrays `[B, S, K, H]`, or one stacked array `[L, B, S, K, H]` where
layers are scanned. Axes are addressed from the right, so that everything here works on both. Layers
that share another's attention weights have keys `[B, S, K, 0]`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models import rope, sharding

SLOTS = -3  # the axis of slots in k and v


class KVCache(NamedTuple):
    """S slots of keys (rotated to `positions`) and values.

    A row at position t sees the slots that are `valid` and whose position is <= t: the only mask
    there is.
    """

    k: Any  # tuple of L arrays [B, S, K, H], or one [L, B, S, K, H]
    v: Any
    positions: jax.Array  # int32 [B, S]
    valid: jax.Array  # bool [B, S]
    bias: Any = None  # added to a key's logits: like k without H, [B, K, S] a layer; or None

    @property
    def num_slots(self) -> int:
        return self.positions.shape[-1]

    @property
    def layers(self):
        """Keys, values and biases as run_layers walks them."""
        return self.k, self.v, self.bias

    @property
    def batch(self) -> int:
        return self.positions.shape[0]

    @property
    def dtype(self):
        return jax.tree.leaves(self.k)[0].dtype


def init(config, batch: int, slots: int, dtype, bias: bool = False) -> KVCache:
    """An empty cache: no slot is valid. With `bias` it has one, of 0."""
    shape, H = (batch, slots, config.num_kv_heads), config.head_dim
    zeros = lambda *axes: sharding.constrain_heads(config.mesh, jnp.zeros(axes, dtype))  # noqa: E731
    if config.scan_layers:
        k, v = (zeros(config.num_layers, *shape, H) for _ in "kv")
    else:
        layers = range(config.num_layers)
        k = tuple(zeros(*shape, config.key_dim(i)) for i in layers)
        v = tuple(zeros(*shape, H) for _ in layers)
    empty = jnp.zeros((batch, slots), jnp.int32)
    cache = KVCache(k, v, empty, empty.astype(bool))
    return with_bias(cache) if bias else cache


def from_layers(config, k, v, positions: jax.Array, valid: jax.Array, bias=None) -> KVCache:
    """A cache of lists with an array for each layer, in the layout of `config`."""
    join = jnp.stack if config.scan_layers else tuple
    return KVCache(join(k), join(v), positions, valid, None if bias is None else join(bias))


def put(config, cache: KVCache) -> KVCache:
    """A host's cache on `config.mesh`, split by its heads; unchanged without a mesh."""
    if config.mesh is None:
        return cache
    # Of a bias too the heads are the last axis but one.
    place = lambda x: sharding.put(sharding.heads(config.mesh, x.ndim), x)  # noqa: E731
    k, v, bias = jax.tree.map(place, (cache.k, cache.v, cache.bias))
    return cache._replace(k=k, v=v, bias=bias)


def with_bias(cache: KVCache) -> KVCache:
    """The cache with a bias of 0, unless it has one."""
    if cache.bias is not None:
        return cache
    shape = lambda x: (*x.shape[:SLOTS], x.shape[-2], x.shape[SLOTS])  # noqa: E731
    return cache._replace(bias=jax.tree.map(lambda x: jnp.zeros(shape(x), jnp.float32), cache.k))


def add_bias(cache: KVCache, bias_BxS: jax.Array) -> KVCache:
    """The cache with so much more bias on the keys of a slot, of all heads and layers."""
    cache = with_bias(cache)
    return cache._replace(bias=jax.tree.map(lambda b: b + bias_BxS[:, None], cache.bias))


def write_slots(old: jax.Array, new: jax.Array, slots: jax.Array, axis: int) -> jax.Array:
    """Writes `new` into `old` along `axis`, counted from the right.

    `slots` is the first slot (a scalar: the rest follow), or one slot for each row of `new` `[T]`,
    all different; one of S or more drops its row. With a scalar, `new` must fit: XLA would
    otherwise move the start and silently write over what comes before. Callers check the sizes.
    """
    new = new.astype(old.dtype)
    if old.dtype == jnp.bfloat16:
        return _update_bfloat16(axis, old, new, slots)
    return _update(axis, old, new, slots)


def _update(axis: int, old: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
    if jnp.ndim(slots) == 0:
        return jax.lax.dynamic_update_slice_in_dim(old, new, slots, axis + old.ndim)
    index = (Ellipsis, slots) + (slice(None),) * (-axis - 1)
    # Without unique_indices the scatter has no transpose, and bfloat16's gradient below needs it.
    return old.at[index].set(new, mode="drop", unique_indices=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _update_bfloat16(axis: int, old: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
    # XLA for CPUs updates bfloat16 by converting the whole cache to float32 and back; as integers
    # the few new rows are simply written. Integers have no gradient, so it is given below.
    as_bits = functools.partial(jax.lax.bitcast_convert_type, new_dtype=jnp.uint16)
    bits = _update(axis, as_bits(old), as_bits(new), slots)
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


@_update_bfloat16.defjvp
def _update_bfloat16_jvp(axis, primals, tangents):
    old, new, slots = primals
    return _update_bfloat16(axis, old, new, slots), _update(axis, *tangents[:2], slots)


def mix(old: jax.Array, new: jax.Array, slots: jax.Array, share: jax.Array) -> jax.Array:
    """Rows `new` `[B, T, K, H]` mixed with their slots of `old`: `share` `[T]` of the new.

    `slots` as in `write_slots`.
    """
    if jnp.ndim(slots) == 0:
        current = jax.lax.dynamic_slice_in_dim(old, slots, new.shape[SLOTS], SLOTS + old.ndim)
    else:
        current = jnp.take(old, slots, axis=SLOTS, mode="clip")
    share = share[:, None, None]
    return share * new + (1 - share) * current.astype(new.dtype)


def write_layer(
    cache: KVCache, layer: int, k: jax.Array, v: jax.Array, slots: jax.Array
) -> KVCache:
    """Writes rows `[B, T, K, H]` into one layer; `mark` says who may see them."""

    def put(all_layers, new):
        written = write_slots(all_layers[layer], new, slots, SLOTS)
        if isinstance(all_layers, tuple):
            return (*all_layers[:layer], written, *all_layers[layer + 1 :])
        return all_layers.at[layer].set(written)

    return cache._replace(k=put(cache.k, k), v=put(cache.v, v))


def mark(cache: KVCache, positions: jax.Array, valid: jax.Array, slots: jax.Array) -> KVCache:
    """Sets the positions of rows `[B, T]` written to `slots`, and which of them are valid."""
    return cache._replace(
        positions=write_slots(cache.positions, positions, slots, -1),
        valid=write_slots(cache.valid, valid, slots, -1),
    )


def write(cache: KVCache, part: KVCache, slots: jax.Array) -> KVCache:
    """Writes all slots of `part` into `cache`: its padding too, which the next part overwrites.

    A part without a bias has one of 0. Raises ValueError for a bias where `cache` has none.
    """
    part = _with_bias_as(cache, part)
    put = lambda axis: lambda old, new: write_slots(old, new, slots, axis)  # noqa: E731
    k, v = jax.tree.map(put(SLOTS), (cache.k, cache.v), (part.k, part.v))
    bias = jax.tree.map(put(-1), cache.bias, part.bias)
    return mark(cache._replace(k=k, v=v, bias=bias), part.positions, part.valid, slots)


def _with_bias_as(cache: KVCache, part: KVCache) -> KVCache:
    if cache.bias is not None:
        return with_bias(part)
    if part.bias is not None:
        raise ValueError("A cache with a bias cannot be written into one without a bias.")
    return part


def as_rows(cache: KVCache, slots: int) -> KVCache:
    """A cache of batch 1 as rows of `slots` slots, one after the other."""
    rows = cache.num_slots // slots
    split = lambda x, axis: x.reshape(*x.shape[:axis], rows, slots, *x.shape[axis + 2 :])  # noqa: E731
    k, v = jax.tree.map(lambda x: split(x, x.ndim - 4), (cache.k, cache.v))
    # A bias has its heads between rows and slots.
    turned = jax.tree.map(lambda x: jnp.moveaxis(x, -1, -2), cache.bias)
    bias = jax.tree.map(lambda x: jnp.moveaxis(split(x, x.ndim - 3), -1, -2), turned)
    return KVCache(k, v, split(cache.positions, 0), split(cache.valid, 0), bias)


def write_rows(cache: KVCache, part: KVCache, first: jax.Array) -> KVCache:
    """Writes all batch rows of `part` into `cache` from row `first` on (int32 scalar); they fit.

    A part without a bias has one of 0. Raises ValueError for a bias where `cache` has none.
    """
    part = _with_bias_as(cache, part)
    put = lambda axis: lambda old, new: write_slots(old, new, first, axis)  # noqa: E731
    k, v = jax.tree.map(put(SLOTS - 1), (cache.k, cache.v), (part.k, part.v))
    bias = jax.tree.map(put(-3), cache.bias, part.bias)
    positions, valid = map(put(-2), (cache.positions, cache.valid), (part.positions, part.valid))
    return KVCache(k, v, positions, valid, bias)


def move(config, cache: KVCache, difference: jax.Array) -> KVCache:
    """The cache with its keys moved by `difference` positions; values are unchanged."""
    return cache._replace(
        k=jax.tree.map(lambda k: rope.move(config, k, difference), cache.k),
        positions=cache.positions + difference,
    )


def gather(cache: KVCache, slots: jax.Array) -> KVCache:
    """The slots `int32 [S']` of a cache, in that order."""
    k, v = jax.tree.map(lambda x: jnp.take(x, slots, axis=SLOTS), (cache.k, cache.v))
    bias = jax.tree.map(lambda x: jnp.take(x, slots, axis=-1), cache.bias)
    return KVCache(k, v, cache.positions[:, slots], cache.valid[:, slots], bias)


def resize(cache: KVCache, slots: int) -> KVCache:
    """The first `slots` slots, or invalid ones appended."""
    extra = slots - cache.num_slots

    def fit(x: jax.Array, axis: int) -> jax.Array:
        if extra <= 0:
            return jax.lax.slice_in_dim(x, 0, slots, axis=axis + x.ndim)
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, extra)
        return jnp.pad(x, padding)

    k, v = jax.tree.map(lambda x: fit(x, SLOTS), (cache.k, cache.v))
    bias = jax.tree.map(lambda x: fit(x, -1), cache.bias)
    return KVCache(k, v, fit(cache.positions, -1), fit(cache.valid, -1), bias)


def row(cache: KVCache, i: int) -> KVCache:
    """One batch row, as a cache of batch 1."""
    k, v = jax.tree.map(lambda x: x[..., i : i + 1, :, :, :], (cache.k, cache.v))
    bias = jax.tree.map(lambda x: x[..., i : i + 1, :, :], cache.bias)
    return KVCache(k, v, cache.positions[i : i + 1], cache.valid[i : i + 1], bias)


def join_rows(first: KVCache, second: KVCache) -> KVCache:
    """The batch rows of both, one after the other; both have a bias, or neither."""
    join = lambda axis: lambda a, b: jnp.concatenate([a, b], axis)  # noqa: E731
    k, v = jax.tree.map(join(SLOTS - 1), (first.k, first.v), (second.k, second.v))
    bias = jax.tree.map(join(-3), first.bias, second.bias)
    positions = jnp.concatenate([first.positions, second.positions])
    return KVCache(k, v, positions, jnp.concatenate([first.valid, second.valid]), bias)


def take_rows(cache: KVCache, rows: jax.Array) -> KVCache:
    """The batch rows int32 `[B']` of a cache, in that order."""
    k, v = jax.tree.map(lambda x: jnp.take(x, rows, axis=SLOTS - 1), (cache.k, cache.v))
    bias = jax.tree.map(lambda x: jnp.take(x, rows, axis=-3), cache.bias)
    return KVCache(k, v, cache.positions[rows], cache.valid[rows], bias)
