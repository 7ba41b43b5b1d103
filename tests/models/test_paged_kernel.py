"""The kernel over pages, interpreted: what attention over the same pages gives without it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvpacket_jax.measure.flops import count_flops
from models import kv_cache, paged, paged_kernel, sharding
from models.attention import Kernel, Segment, attend
from models.kv_cache import KVCache
from models.paged import Paged
from tests.support.configs import ROPES
from tests.support.configs import tiny as config_of

S, K, G, H = 16, 2, 3, 16


def context(pages: int, dtype=jnp.float32) -> Paged:
    """Pages at places far apart, as packets of two pages each, some of their slots not valid."""
    rng = np.random.default_rng(0)
    k, v = ((jnp.asarray(rng.standard_normal((pages, S, K, H)), dtype),) for _ in "kv")
    local = np.arange(pages * S, dtype=np.int32).reshape(pages, S) % (2 * S)
    valid = jnp.asarray(rng.random((pages, S)) < 0.8)
    pool = KVCache(k, v, jnp.asarray(local), valid)
    return Paged(pool, None, jnp.asarray(np.arange(pages) // 2 * 2_001, jnp.int32))


def rows(config, batch: int, count: int, at: int):
    """Queries and positions of rows, and the segment that the rows themselves are."""
    rng = np.random.default_rng(1)
    q, k, v = (
        jnp.asarray(rng.standard_normal((batch, count, heads, H)), jnp.float32)
        for heads in (K * G, K, K)
    )
    positions = jnp.broadcast_to(at + jnp.arange(count, dtype=jnp.int32), (batch, count))
    return q, positions, Segment(k, v, positions, jnp.ones_like(positions, bool))


def both(config, pages: Paged, batch=1, count=3, at=90_000, block=128):
    """Attention over pages and rows: with the kernel, and without."""
    q, positions, own = rows(config, batch, count, at)
    layer = pages.pool.k[0], pages.pool.v[0], None, 10**6
    parts = [
        paged.segment_or_kernel(dataclasses.replace(config, paged_kernel=kernel), pages, *layer)
        for kernel in (True, False)
    ]
    assert isinstance(parts[0], Kernel) and isinstance(parts[1], Segment)
    return (
        jax.jit(lambda q, positions, own, part=part: attend(q, positions, [part, own], block))(
            q, positions, own
        )
        for part in parts
    )


@pytest.mark.parametrize("kind", ROPES)
def test_it_is_attention_over_keys_that_were_moved(kind):
    actual, expected = both(config_of(kind), context(24))
    np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("pages", "batch", "count"), [(1, 1, 1), (7, 2, 5), (40, 1, 48), (67, 3, 130)]
)
def test_any_number_of_pages_and_rows(pages, batch, count):
    actual, expected = both(config_of("llama3"), context(pages), batch, count)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_bfloat16_to_its_own_precision():
    actual, expected = both(config_of("default"), context(40, jnp.bfloat16), count=9)
    np.testing.assert_allclose(actual, expected, atol=3e-2)


def test_rows_see_only_what_stands_before_them():
    # In the midst of the pages, before all of them, and where no slot is valid.
    for at, pages in ((9_000, context(24)), (-5, context(24)), (90_000, context(24))):
        if at == 90_000:
            pages = pages._replace(pool=pages.pool._replace(valid=pages.pool.valid & False))
        actual, expected = both(config_of("default"), pages, at=at)
        np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_heads_are_split_over_a_mesh():
    config = dataclasses.replace(config_of("llama3"), num_heads=K * G, num_kv_heads=K)
    config = dataclasses.replace(config, mesh=sharding.make_mesh("model:2", config))
    pages = context(40)
    placed = pages._replace(pool=kv_cache.put(config, pages.pool))
    actual, _ = both(config, placed)
    _, expected = both(dataclasses.replace(config, mesh=None), pages)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["tiny_llama31", "tiny_qwen2"])
def test_a_model_with_it_says_the_same(tiny, name):
    model = tiny(name)
    config = model.config
    rng = np.random.default_rng(2)
    shape = 8, S, config.num_kv_heads, config.head_dim
    k, v = (
        tuple(
            jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(config.num_layers)
        )
        for _ in "kv"
    )
    local = jnp.tile(jnp.arange(S, dtype=jnp.int32), (8, 1))
    pool = KVCache(k, v, local, jnp.ones((8, S), bool))
    pages = Paged(pool, None, jnp.arange(8, dtype=jnp.int32) * S)
    ids = jnp.asarray(rng.integers(0, config.vocab_size, (2, 5)))
    positions = jnp.broadcast_to(128 + jnp.arange(5, dtype=jnp.int32), (2, 5))
    valid, tail = jnp.ones((2, 5), bool), kv_cache.init(config, 2, 8, jnp.float32)
    hidden = []
    for kernel in (True, False):
        module = type(model.module)(dataclasses.replace(config, paged_kernel=kernel))
        bound = module.bind({"params": model.params})
        x = bound.embed(ids)
        hidden.append(bound.run_layers(x, positions, valid, (pages,), tail, jnp.int32(0))[0])
    np.testing.assert_allclose(*hidden, atol=1e-4)


def test_the_sizes_that_contexts_have_need_no_page_more():
    for pages in (40, 80, 120, 160, 320, 640, 10_240):  # what Buckets.context gives
        for most in (8, 16, 32):
            at_once = paged_kernel._pages_at_once(pages, most)
            assert pages % at_once == 0 and at_once <= most
            assert at_once % paged_kernel.SUBLANES == 0 or at_once == pages


def test_what_it_cannot_read_is_read_without_it(tiny):
    config = dataclasses.replace(config_of("default"), paged_kernel=True)
    pages = context(4)
    layer = pages.pool.k[0], pages.pool.v[0]
    listed = pages._replace(table=jnp.arange(4))
    bias = jnp.zeros((4, K, S))
    assert isinstance(paged.segment_or_kernel(config, listed, *layer, None, 6), Segment)
    assert isinstance(paged.segment_or_kernel(config, pages, *layer, bias, 6), Segment)
    wide = (jnp.zeros((4, S, 64, 128)),) * 2  # 4 MB at once, of keys alone
    assert isinstance(paged.segment_or_kernel(config, pages, *wide, None, 6), Segment)
    with pytest.raises(ValueError, match="shared_layers need paged_kernel=False"):
        dataclasses.replace(tiny("tiny_qwen2").config, paged_kernel=True, shared_layers=range(1, 2))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_it_lowers_for_a_tpu(dtype):
    """At the sizes of Llama-3.1-8B; what its compiler makes of it `make plan` shows."""
    heads, size, pages, count = 8, 128, 64, 256
    array = jax.ShapeDtypeStruct
    pool = array((pages, S, heads, size), dtype)
    turns = array((pages, size // 2), jnp.float32)
    queries = array((heads, count, size), jnp.float32), array((count,), jnp.int32)
    run = jax.jit(functools.partial(paged_kernel._attend, interpret=False))
    traced = run.trace(*queries, pool, pool, turns, turns, array((pages, S), jnp.int32))
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_no_gpu_interprets_it(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match="for TPUs, not for a gpu"):
        list(both(config_of(next(iter(ROPES))), context(2)))


def test_its_work_is_counted():
    config, pages = config_of("default"), context(8)
    q = jax.ShapeDtypeStruct((K, 16, H), jnp.float32)
    at = jax.ShapeDtypeStruct((16,), jnp.int32)
    pool = pages.pool
    given = pool.k[0], pool.v[0], pages.starts, pool.positions, pool.valid
    found = count_flops(lambda q, at: paged_kernel.attend_pages(config, q, at, *given), q, at)
    assert found.total >= 4 * K * 16 * 8 * S * H
