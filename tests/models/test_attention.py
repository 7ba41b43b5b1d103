"""attend(): one softmax over all segments, in blocks or not, shared or not, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import attention
from models.attention import Segment, attend

B, T, N, K, H = 3, 13, 4, 2, 8


@pytest.fixture
def short_extents(monkeypatch):
    """Quarters of segments as short as those here."""
    monkeypatch.setattr(attention, "LEAST_EXTENT", 4)


def segment(rng, batch, slots, bias=False):
    shape = (batch, slots, K, H)
    return Segment(
        jnp.asarray(rng.standard_normal(shape), jnp.float32),
        jnp.asarray(rng.standard_normal(shape), jnp.float32),
        jnp.asarray(rng.integers(0, 40, (batch, slots)), jnp.int32),
        jnp.asarray(rng.random((batch, slots)) < 0.8),
        jnp.asarray(rng.standard_normal((batch, K, slots)), jnp.float32) if bias else None,
    )


def case(seed=0):
    """Rows that all see something, over a shared segment, one with a bias, and their own."""
    rng = np.random.default_rng(seed)
    q = jnp.asarray(rng.standard_normal((B, T, N, H)), jnp.float32)
    positions = jnp.asarray(rng.integers(5, 40, (B, T)), jnp.int32)
    segments = [segment(rng, 1, 7), segment(rng, B, 5, bias=True), segment(rng, B, T)]
    first = segments[0]
    seen = first.positions.at[:, 0].set(0), first.valid.at[:, 0].set(True)
    return q, positions, [first._replace(positions=seen[0], valid=seen[1]), *segments[1:]]


def joined(segments: list[Segment]) -> Segment:
    """The segments side by side as one, shared ones copied, without biases as zeros."""

    def whole(part):
        parts = [getattr(s, part) for s in segments]
        return jnp.concatenate(
            [jnp.broadcast_to(p, (B, *p.shape[1:])) for p in parts], axis=2 if part == "bias" else 1
        )

    filled = [
        s if s.bias is not None else s._replace(bias=jnp.zeros((*s.k.shape[:1], K, s.k.shape[1])))
        for s in segments
    ]
    segments = filled
    return Segment(*map(whole, Segment._fields[:-1]))


def exact(q, positions, segment: Segment) -> np.ndarray:
    """The definition, a head and a row at a time, in float64."""
    q, k, v, bias = (np.asarray(x, np.float64) for x in (q, segment.k, segment.v, segment.bias))
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        head = n // (N // K)
        see = np.asarray(segment.valid[b] & (segment.positions[b] <= positions[b, t]))
        scores = k[b, see, head] @ q[b, t, n] / np.sqrt(H) + bias[b, head, see]
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ v[b, see, head] / weights.sum()
    return out


@pytest.mark.parametrize("block", [1, 4, 12, 13, 128])
def test_equals_the_definition_over_the_concatenation(block):
    q, positions, segments = case()
    expected = exact(q, positions, joined(segments))
    np.testing.assert_allclose(attend(q, positions, segments, block), expected, atol=2e-6)
    whole = attend(q, positions, [joined(segments)], block)
    np.testing.assert_allclose(whole, expected, atol=2e-6)


@pytest.mark.parametrize("key_block", [1, 2, 5, 6, 12, 100])
@pytest.mark.parametrize("block", [1, 4, 12, 39, 128])
def test_blocks_of_keys_give_the_same(block, key_block, short_extents):
    q, positions, segments = case()
    positions = positions.at[1, 2].set(-1)  # a row that sees nothing, whose value has no meaning
    whole = attend(q, positions, segments, 128).at[1, 2].set(0)
    parts = attend(q, positions, segments, block, key_block)
    assert bool(jnp.isfinite(parts).all())
    np.testing.assert_allclose(parts.at[1, 2].set(0), whole, atol=2e-6)


@pytest.mark.parametrize(("key_block", "size"), [(12, 4), (100, 3)])  # blocks; quarters
def test_slots_that_no_row_of_a_block_sees_are_not_read(key_block, size, short_extents):
    q, _, segments = case()
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    own = segments[2]._replace(positions=positions, valid=jnp.ones((B, T), bool), bias=None)
    whole = attend(q, positions, [own], 128)
    half = own._replace(v=own.v.at[:, 2 * size :].set(jnp.nan))
    parts = attend(q, positions, [half], size, key_block)
    np.testing.assert_allclose(parts[:, : 2 * size], whole[:, : 2 * size], atol=2e-6)
    assert bool(jnp.isnan(parts[:, 2 * size :]).all())


def test_a_shared_segment_is_the_same_as_copies_of_it():
    q, positions, segments = case()
    copies = jax.tree.map(lambda x: jnp.repeat(x, B, axis=0), segments[0])
    for block in (4, 128):
        shared = attend(q, positions, segments, block)
        copied = attend(q, positions, [copies, *segments[1:]], block)
        np.testing.assert_allclose(shared, copied, atol=2e-6)


def test_slots_that_are_not_visible_change_nothing():
    q, positions, segments = case()
    before = attend(q, positions, segments, 128)
    for s, part in enumerate(segments):
        hidden = ~part.valid | (part.positions > positions.max())
        wild = jnp.where(hidden[..., None, None], 1e4, 0)
        segments[s] = part._replace(k=part.k + wild, v=part.v - wild)
    np.testing.assert_array_equal(attend(q, positions, segments, 128), before)


@pytest.mark.parametrize("key_block", [0, 2, 100])
@pytest.mark.parametrize("block", [4, 128])
def test_gradients_of_blocks_are_those_of_the_whole(block, key_block, short_extents):
    q, positions, segments = case()

    def loss(arrays, parts, block, key_block=0):
        q, ks, vs = arrays
        parts = [p._replace(k=k, v=v) for p, k, v in zip(parts, ks, vs, strict=True)]
        return jnp.sum(jnp.sin(attend(q, positions, parts, block, key_block)))

    arrays = (q, [s.k for s in segments], [s.v for s in segments])
    actual = jax.grad(loss)(arrays, segments, block, key_block)
    one = joined(segments)
    expected = jax.grad(loss)((q, [one.k], [one.v]), [one], 128)
    np.testing.assert_allclose(actual[0], expected[0], atol=5e-6)
    for parts, whole in zip(actual[1:], expected[1:], strict=True):
        shared = whole[0][:, :7].sum(0, keepdims=True)  # one array for all rows: their sum
        np.testing.assert_allclose(parts[0], shared, atol=1e-5)
        rest = jnp.concatenate(parts[1:], axis=1)
        np.testing.assert_allclose(rest, whole[0][:, 7:], atol=5e-6)


@pytest.mark.parametrize("block", [4, 128])
def test_a_row_that_sees_nothing_is_finite_with_finite_gradients(block):
    q, positions, segments = case()
    positions = positions.at[1, 2].set(-1)

    def loss(q, segments):
        out = attend(q, positions, segments, block)
        return jnp.sum(jnp.square(out)), out

    floats = [(s.k, s.v) for s in segments]

    def by_floats(q, floats):
        return loss(q, [s._replace(k=k, v=v) for s, (k, v) in zip(segments, floats, strict=True)])

    grads, out = jax.grad(by_floats, argnums=(0, 1), has_aux=True)(q, floats)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((grads, out)))
    blind = jax.tree.map(lambda x: x, [s._replace(valid=s.valid & False) for s in segments])
    grads = jax.grad(lambda q: loss(q, blind)[0])(q)
    assert bool(jnp.isfinite(grads).all())


def test_bias_counts_a_merged_token_as_often_as_it_stands_for():
    q, positions, segments = case()
    plain = segments[2]._replace(bias=None)
    double = plain._replace(bias=jnp.full((B, K, T), jnp.log(2.0)))
    np.testing.assert_allclose(
        attend(q, positions, [segments[0], double], 128),
        attend(q, positions, [segments[0], plain, plain], 128),
        atol=2e-6,
    )


@pytest.mark.parametrize("block", [4, 128])
def test_bfloat16_caches_are_read_to_their_own_precision(block):
    q, positions, segments = case()
    rounded = [s._replace(k=s.k.astype(jnp.bfloat16), v=s.v.astype(jnp.bfloat16)) for s in segments]
    back = [s._replace(k=s.k.astype(jnp.float32), v=s.v.astype(jnp.float32)) for s in rounded]
    actual = attend(q, positions, rounded, block)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, attend(q, positions, back, 128), atol=3e-2)
