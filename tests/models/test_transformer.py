"""run_layers: loop and scan, ranges of layers, contexts, padding, and what gradients see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import attention, identity, kv_cache
from models.attention import Segment
from models.transformer import Block
from tests.support.golden import FAMILIES

T, CONTEXT = 6, 9


def stacked(tree):
    """A tuple over layers as one stacked array (what scan_layers asks for)."""
    return jax.tree.map(lambda *x: jnp.stack(x), *tree)


def inputs(config, scan: bool):
    """Two rows over a shared context and one of their own, and an empty tail."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, T, config.dim)), jnp.float32)
    shape = (config.num_kv_heads, config.head_dim)

    def random_cache(batch):
        k, v = (
            tuple(
                jnp.asarray(rng.standard_normal((batch, CONTEXT, *shape)), jnp.float32)
                for _ in range(config.num_layers)
            )
            for _ in "kv"
        )
        places = jnp.broadcast_to(jnp.arange(CONTEXT), (batch, CONTEXT))
        k, v = (stacked(k), stacked(v)) if scan else (k, v)
        return kv_cache.KVCache(k, v, places, places < CONTEXT - 2)

    context = (random_cache(1), random_cache(2))
    positions = CONTEXT + jnp.broadcast_to(jnp.arange(T), (2, T))
    valid = jnp.arange(T) < jnp.array([[T], [T - 2]])
    return x, positions, valid, context, kv_cache.init(config, 2, T + 2, jnp.float32)


def run(model, x, positions, valid, context, tail, slots=0, layers=None):
    bound = model.module.bind({"params": model.params})
    return jax.jit(lambda *a: bound.run_layers(*a, slots, layers))(
        x, positions, valid, context, tail
    )


def logits(model, x):
    return model.module.bind({"params": model.params}).logits(x)


def same(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


@pytest.mark.parametrize("name", FAMILIES)
def test_scan_equals_loop_in_one_pass_and_in_two(tiny, name):
    loop, scan = tiny(name), tiny(name, scan_layers=True)
    same(stacked(loop.params["layers"]), scan.params["layers"], 0)
    x, tail = run(loop, *inputs(loop.config, False))
    tail = tail._replace(k=stacked(tail.k), v=stacked(tail.v))
    actual, other = run(scan, *inputs(scan.config, True))
    np.testing.assert_allclose(logits(scan, actual), logits(loop, x), atol=1e-3)
    same(other, tail, 2e-4)

    for model, stack in ((loop, False), (scan, True)):
        x1, positions, valid, context, tail1 = inputs(model.config, stack)
        L = model.config.num_layers
        for layers in (range(2), range(2, L)):
            x1, tail1 = run(model, x1, positions, valid, context, tail1, layers=layers)
        np.testing.assert_allclose(logits(model, x1), logits(loop, x), atol=1e-3)
        if not stack:
            tail1 = tail1._replace(k=stacked(tail1.k), v=stacked(tail1.v))
        same(tail1, tail, 2e-4)


@pytest.mark.parametrize("scan", [False, True])
def test_layers_outside_a_range_are_left_alone(tiny, scan):
    model = tiny("tiny_qwen3", scan_layers=scan)
    x, positions, valid, context, tail = inputs(model.config, scan)
    _, actual = run(model, x, positions, valid, context, tail, layers=range(1, 3))
    written = [bool(jnp.any(k != 0)) for k in actual.k]
    assert written == [i in (1, 2) for i in range(model.config.num_layers)]


def test_rows_in_pieces_equal_rows_at_once(tiny):
    model = tiny("tiny_llama31")
    x, positions, valid, context, tail = inputs(model.config, False)
    valid = jnp.ones_like(valid)
    whole, expected = run(model, x, positions, valid, context, tail)
    parts = []
    for start, stop in ((0, 2), (2, 3), (3, T)):
        piece = (a[:, start:stop] for a in (x, positions, valid))
        out, tail = run(model, *piece, context, tail, slots=start)
        parts.append(out)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-4)
    same(tail, expected, 2e-5)


def test_rows_written_to_listed_slots_are_the_same_rows(tiny):
    model = tiny("tiny_qwen2")
    args = inputs(model.config, False)
    whole, expected = run(model, *args)
    slots = jnp.array([7, 2, 5, 0, 1, 4])
    actual, tail = run(model, *args, slots=slots)
    np.testing.assert_allclose(actual, whole, atol=2e-4)
    same(kv_cache.gather(tail, slots), kv_cache.resize(expected, T), 2e-5)


def test_padding_and_later_rows_are_never_seen(tiny):
    model = tiny("tiny_qwen3")
    x, positions, valid, context, tail = inputs(model.config, False)

    def total(x, row, t):
        return jnp.sum(jnp.square(run(model, x, positions, valid, context, tail)[0][row, t]))

    # Causality by gradient: what row t depends on.
    slope = jax.jit(jax.grad(total))
    for row, t in ((0, 3), (1, T - 1)):
        moved = jnp.abs(slope(x, row, t)).sum(-1)
        seen = (jnp.arange(T) < t) & valid[row] | (jnp.arange(T) == t)
        np.testing.assert_array_equal(moved[row] > 0, seen)
        assert not moved[1 - row].any()

    wild = jax.tree.map(
        lambda c: jnp.where(jnp.arange(CONTEXT)[:, None, None] < CONTEXT - 2, c, 99.0), context[0].k
    )
    hidden = (context[0]._replace(k=wild), context[1])
    same(
        run(model, x, positions, valid, hidden, tail),
        run(model, x, positions, valid, context, tail),
        0,
    )


FEW = {"remat": True}, {"query_block": 4, "key_block": 2}, {"remat": True, "query_block": 2}
MORE = {"query_block": 4}, {"query_block": 12, "key_block": 1}


@pytest.mark.parametrize(
    ("scan", "every"),
    [
        (False, FEW[2:]),
        (True, FEW),
        pytest.param(False, FEW[:2] + MORE, marks=pytest.mark.slow),
        pytest.param(True, MORE, marks=pytest.mark.slow),
    ],
)
def test_remat_and_blocks_change_no_gradient(tiny, scan, every):
    def gradient(**choices):
        model = tiny("tiny_llama31", scan_layers=scan, **choices)
        x, *rest = inputs(model.config, scan)
        total = lambda x: jnp.sum(jnp.sin(logits(model, run(model, x, *rest)[0])))  # noqa: E731
        return jax.jit(jax.grad(total))(x)

    plain = gradient()
    scale = float(jnp.abs(plain).max())
    for choices in every:
        np.testing.assert_allclose(gradient(**choices), plain, atol=1e-4 * scale)


def test_shared_layers_take_the_weights_of_the_layer_before(tiny):
    """Against the definition: the last unshared layer's queries and keys, each layer's values."""
    model = tiny("tiny_qwen2", shared_layers="1:3")
    c, bound = model.config, model.module.bind({"params": model.params})
    x, positions, valid, _, tail = inputs(c, False)
    valid = jnp.ones_like(valid)
    assert [k.shape[-1] for k in tail.k] == [0 if i in (1, 2) else c.head_dim for i in range(4)]
    actual, tail = run(model, x, positions, valid, (), tail)

    for i in range(c.num_layers):
        q, k, v = bound.qkv(x, positions, i)
        if i not in (1, 2):
            segment = Segment(k, v, positions, valid)
            shares = attention.weights(q, positions, [segment])
        np.testing.assert_allclose(tail.v[i][:, :T], v, atol=2e-4)
        v = jnp.repeat(v, c.num_groups, axis=2)
        block = Block(c, parent=None).bind({"params": model.params["layers"][i]})
        x = block.finish(x, jnp.einsum("BTNS,BSNH->BTNH", shares, v))
    np.testing.assert_allclose(actual, x, atol=2e-4)


def test_shared_layers_do_not_run_without_the_one_they_share_with(tiny):
    model = tiny("tiny_qwen2", shared_layers="1:3")
    x, positions, valid, _, tail = inputs(model.config, False)
    whole, _ = run(model, x, positions, valid, (), tail)
    for layers in model.config.steps():
        x, tail = run(model, x, positions, valid, (), tail, layers=layers)
    np.testing.assert_allclose(x, whole, atol=2e-4)
    with pytest.raises(ValueError, match="cannot run apart from layer 0"):
        run(model, x, positions, valid, (), tail, layers=range(2, 4))


def test_shared_layers_are_another_model(tiny):
    plain = tiny("tiny_qwen2").config
    for shared in (range(0, 2), range(2, 2), range(3, 9), range(1, 4, 2)):
        with pytest.raises(ValueError, match="must lie within 1:"):
            dataclasses.replace(plain, shared_layers=shared)
    with pytest.raises(ValueError, match="need scan_layers=False"):
        dataclasses.replace(plain, shared_layers=range(1, 2), scan_layers=True)
    digests = {
        identity.model_fingerprint(dataclasses.replace(plain, shared_layers=shared), [])
        for shared in (None, range(1, 2), range(1, 3))
    }
    assert len(digests) == 3
    model = tiny("tiny_qwen2", shared_layers="1:3")
    assert model.name.endswith("tiny_qwen2+shared_layers=1:3")
    for text in ("1", "1-3", "a:b", "1:3:1"):
        with pytest.raises(ValueError, match=f"shared_layers '{text}' is not a range"):
            tiny("tiny_qwen2", shared_layers=text)
