"""KVCache: writes in both forms and dtypes with their gradients, moves, and both layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import kv_cache, rope
from models.kv_cache import KVCache, write_slots
from tests.support.configs import tiny as config_of

CONFIG = config_of("llama3")


def random_cache(seed, slots, batch=2, dtype=jnp.float32, stacked=False) -> KVCache:
    rng = np.random.default_rng(seed)
    shape = (3, batch, slots, 2, 16)
    k, v = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in "kv")
    bias = jnp.asarray(rng.standard_normal((3, batch, 2, slots)), jnp.float32)
    if not stacked:
        k, v, bias = tuple(k), tuple(v), tuple(bias)
    positions = jnp.asarray(rng.integers(0, 99, (batch, slots)), jnp.int32)
    return KVCache(k, v, positions, jnp.asarray(rng.random((batch, slots)) < 0.7), bias)


def array(cache: KVCache) -> list[np.ndarray]:
    """All numbers of a cache, the same for both layouts."""
    parts = [cache.k, cache.v, cache.bias]
    parts = [np.stack([np.asarray(a, np.float32) for a in p]) for p in parts if p is not None]
    return [*parts, np.asarray(cache.positions), np.asarray(cache.valid)]


SLOTS = {
    "scalar": (jnp.int32(4), [4, 5, 6]),
    "to the end": (jnp.int32(7), [7, 8, 9]),
    "listed": (jnp.array([8, 0, 3]), [8, 0, 3]),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("form", SLOTS)
def test_writing_is_setting_and_so_is_its_gradient(form, dtype):
    rng = np.random.default_rng(0)
    old = jnp.asarray(rng.standard_normal((2, 10, 3, 4)), dtype)
    new = jnp.asarray(rng.standard_normal((2, 3, 3, 4)), jnp.float32)
    weights = jnp.asarray(rng.standard_normal(old.shape), jnp.float32)
    slots, listed = SLOTS[form]
    actual = jax.jit(lambda old, new: write_slots(old, new, slots, kv_cache.SLOTS))(old, new)
    assert actual.dtype == dtype
    plain = lambda old, new: old.at[:, jnp.array(listed)].set(new.astype(dtype))  # noqa: E731
    np.testing.assert_array_equal(actual, plain(old, new))

    def loss(write, old, new):
        return jnp.sum(weights * write(old, new).astype(jnp.float32))

    ours = jax.grad(lambda *a: loss(lambda o, n: write_slots(o, n, slots, -3), *a), (0, 1))(
        old, new
    )
    theirs = jax.grad(lambda *a: loss(plain, *a), (0, 1))(old, new)
    exact = jax.grad(lambda *a: loss(lambda o, n: o.at[:, jnp.array(listed)].set(n), *a), (0, 1))(
        old.astype(jnp.float32), new
    )
    for actual, same, full in zip(ours, theirs, exact, strict=True):
        np.testing.assert_array_equal(actual, same)
        scale = 2.0**-8 if dtype == jnp.bfloat16 else 0  # a gradient in bfloat16 is rounded once
        np.testing.assert_allclose(np.asarray(actual, np.float32), full, rtol=scale)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_slot_outside_drops_its_row(dtype):
    old, new = jnp.zeros((1, 4, 1, 2), dtype), jnp.ones((1, 3, 1, 2), dtype)
    actual = write_slots(old, new, jnp.array([4, 1, 99]), kv_cache.SLOTS)
    assert actual[0, :, 0, 0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("stacked", [False, True])
def test_both_layouts_give_the_same(stacked):
    cache, part = (random_cache(s, n, stacked=stacked) for s, n in ((0, 9), (1, 4)))
    base, other = random_cache(0, 9), random_cache(1, 4)
    for f in (
        lambda c, p: kv_cache.write(c, p, jnp.int32(5)),
        lambda c, p: kv_cache.write(c, p, jnp.array([8, 1, 30, 2])),
        lambda c, p: kv_cache.move(CONFIG, c, jnp.int32(-3)),
        lambda c, p: kv_cache.gather(c, jnp.array([3, 0, 8])),
        lambda c, p: kv_cache.resize(c, 6),
        lambda c, p: kv_cache.resize(c, 12),
        lambda c, p: kv_cache.row(c, 1),
    ):
        for ours, expected in zip(array(f(cache, part)), array(f(base, other)), strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_what_each_function_takes_and_leaves():
    cache, part = random_cache(0, 9), random_cache(1, 4)
    k, v, bias, positions, valid = array(cache)
    pk, pv, _, pp, pvalid = array(part)
    actual = array(kv_cache.write(cache, part, jnp.int32(5)))
    for old, new, written, axis in ((k, pk, actual[0], 2), (v, pv, actual[1], 2)):
        np.testing.assert_array_equal(written, np.concatenate([old[:, :, :5], new], axis))
    np.testing.assert_array_equal(actual[3], np.concatenate([positions[:, :5], pp], 1))
    np.testing.assert_array_equal(actual[4], np.concatenate([valid[:, :5], pvalid], 1))

    moved = array(kv_cache.move(CONFIG, cache, jnp.int32(17)))
    np.testing.assert_array_equal(moved[1], v)
    np.testing.assert_array_equal(moved[3], positions + 17)
    np.testing.assert_allclose(
        moved[0], rope.move(CONFIG, jnp.asarray(k), jnp.int32(17)), atol=1e-6
    )

    chosen = [3, 0, 8]
    expected = (k[:, :, chosen], v[:, :, chosen], bias[..., chosen])
    expected = (*expected, positions[:, chosen], valid[:, chosen])
    for got, want in zip(array(kv_cache.gather(cache, jnp.array(chosen))), expected, strict=True):
        np.testing.assert_array_equal(got, want)

    longer = array(kv_cache.resize(cache, 12))
    assert not longer[4][:, 9:].any()
    for got, want in zip(
        array(kv_cache.resize(kv_cache.resize(cache, 12), 9)), array(cache), strict=True
    ):
        np.testing.assert_array_equal(got, want)
    one = array(kv_cache.row(cache, 1))
    np.testing.assert_array_equal(one[0], k[:, 1:])
    np.testing.assert_array_equal(one[3], positions[1:])


def test_an_empty_cache_is_not_seen():
    cache = kv_cache.init(CONFIG, 2, 5, jnp.bfloat16)
    assert not cache.valid.any() and cache.dtype == jnp.bfloat16
    assert (cache.batch, cache.num_slots, len(cache.k)) == (2, 5, CONFIG.num_layers)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_part_without_a_bias_leaves_none_of_what_was_there(stacked):
    cache, part = random_cache(0, 9, stacked=stacked), random_cache(1, 3, stacked=stacked)
    written = kv_cache.write(cache, part._replace(bias=None), jnp.int32(2))
    for old, new in zip(cache.bias, written.bias, strict=True):
        np.testing.assert_array_equal(new, old.at[..., 2:5].set(0))
