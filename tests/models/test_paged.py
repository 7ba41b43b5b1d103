"""Paged: pages read where they lie are the cache that copies and moves them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import kv_cache, paged, rope
from models.attention import Segment, attend
from models.kv_cache import KVCache
from models.paged import Paged
from tests.support.configs import ROPES
from tests.support.configs import tiny as config_of

PAGES, S, K, G, H = 6, 4, 2, 2, 16
TABLE = (4, 1, -1, 5, 1)  # one page twice, one place empty
STARTS = (0, 4, 8, 60_000, 100_001)


def pool(dtype=jnp.float32, bias=False) -> KVCache:
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    k, v = ((array(PAGES, S, K, H).astype(dtype),) for _ in "kv")
    positions = jnp.tile(jnp.arange(S, dtype=jnp.int32), (PAGES, 1))
    valid = jnp.asarray(rng.random((PAGES, S)) < 0.8)
    return KVCache(k, v, positions, valid, (array(PAGES, K, S),) if bias else None)


def copied(config, pages: KVCache) -> Segment:
    """The pages of TABLE moved and written side by side."""
    parts = []
    for page, start in zip(TABLE, STARTS, strict=True):
        part = kv_cache.move(config, kv_cache.row(pages, max(page, 0)), jnp.int32(start))
        parts.append(part._replace(valid=part.valid & (page >= 0)))
    join = lambda axis, *xs: jnp.concatenate(xs, axis)  # noqa: E731
    bias = pages.bias and join(-1, *(p.bias[0] for p in parts))
    k, v = (join(1, *(getattr(p, name)[0] for p in parts)) for name in "kv")
    return Segment(
        k, v, *(join(1, *(getattr(p, n) for p in parts)) for n in ("positions", "valid")), bias
    )


def paged_segment(config, pages: KVCache, rows: int) -> Segment:
    context = Paged(pages, jnp.array(TABLE), jnp.array(STARTS))
    bias = pages.bias and pages.bias[0]
    return paged.segment(config, context, pages.k[0], pages.v[0], bias, rows)


def queries(batch=2, rows=3):
    rng = np.random.default_rng(1)
    q = jnp.asarray(rng.standard_normal((batch, rows, K * G, H)), jnp.float32)
    positions = jnp.asarray(rng.integers(60_002, 100_010, (batch, rows)), jnp.int32)
    return q, positions


@pytest.mark.parametrize("rows", [1, 1_000_000])
def test_all_pages_as_they_lie_are_those_of_a_table_of_them(rows):
    config, pages = config_of(next(iter(ROPES))), pool(bias=True)
    starts = jnp.arange(PAGES) * S
    given = pages.k[0], pages.v[0], pages.bias[0], rows
    listed = Paged(pages, jnp.arange(PAGES), starts)
    lying = Paged(pages, None, starts)
    found, expected = (paged.segment(config, c, *given) for c in (lying, listed))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert lying.num_slots == listed.num_slots == PAGES * S
    jax.tree.map(
        np.testing.assert_array_equal, paged.copied(config, lying), paged.copied(config, listed)
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 1_000_000])
@pytest.mark.parametrize("kind", ROPES)
def test_pages_are_read_as_if_they_were_copied_and_moved(kind, rows, bias):
    config, pages = config_of(kind), pool(bias=bias)
    q, positions = queries()
    segment = paged_segment(config, pages, rows)
    assert (segment.turns is None) == (rows > 1)
    expected = copied(config, pages)
    np.testing.assert_array_equal(segment.positions, expected.positions)
    np.testing.assert_array_equal(segment.valid, expected.valid)
    for block in (2, 128):
        actual = attend(q, positions, [segment], block)
        np.testing.assert_allclose(actual, attend(q, positions, [expected], 128), atol=2e-5)


@pytest.mark.parametrize("rows", [1, 1_000_000])
def test_bfloat16_pages_are_read_to_their_own_precision(rows):
    config, pages = config_of("llama3"), pool(jnp.bfloat16)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), (pages.k, pages.v))
    q, positions = queries()
    actual = attend(q, positions, [paged_segment(config, pages, rows)], 128)
    expected = copied(config, pages._replace(k=exact[0], v=exact[1]))
    np.testing.assert_allclose(actual, attend(q, positions, [expected], 128), atol=3e-2)


def test_a_query_turned_back_scores_as_with_the_key_moved():
    config = config_of("yarn")
    rng = np.random.default_rng(2)
    q, k = (jnp.asarray(rng.standard_normal((1, H)), jnp.float32) for _ in "qk")
    for difference in (0, 7, 4096, 120_000):
        cos, sin = rope.turns(config, jnp.array([difference]))
        turned = jnp.vdot(rope.rotate(q, cos, sin), k)
        moved = jnp.vdot(q, rope.move(config, k[:, None], jnp.int32(difference))[:, 0])
        np.testing.assert_allclose(turned, moved, atol=2e-5)
