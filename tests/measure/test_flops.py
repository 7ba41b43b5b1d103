"""Counts against formulas and against XLA."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kvpacket_jax.measure.flops import Flops, count_flops, xla_flops


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# A 3-layer Qwen-like decoder: B, T, D, N heads, K key/value heads, H, M, V.
B, T, D, N, K, H, M, V, LAYERS = 2, 128, 256, 8, 2, 32, 1024, 2048, 3


def layer_params(stacked=()):
    shapes = dict(q=(D, N, H), k=(D, K, H), v=(D, K, H), o=(N, H, D), gate=(D, M), up=(D, M))
    shapes |= dict(down=(M, D), norm1=(D,), norm2=(D,))
    return {name: f32(*stacked, *shape) for name, shape in shapes.items()}


def norm(x, scale):
    return x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6) * scale


def layer(x, p):
    y = norm(x, p["norm1"])
    q, k, v = (jnp.einsum("BTD,DNH->BTNH", y, p[name]) for name in "qkv")
    angles = jnp.arange(T)[:, None, None] * jnp.exp(-jnp.arange(H // 2) / H)
    cos, sin = jnp.cos(angles), jnp.sin(angles)

    def rotate(x):
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    q, k = rotate(q).reshape(B, T, K, N // K, H), rotate(k)
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", q, k) * H**-0.5
    causal = jnp.arange(T)[:, None] >= jnp.arange(T)
    weights = jax.nn.softmax(jnp.where(causal, logits, -1e9), -1)
    heads = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(B, T, N, H)
    x = x + jnp.einsum("BTNH,NHD->BTD", heads, p["o"])
    y = norm(x, p["norm2"])
    return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]


def unrolled(x, layers, out):
    for p in layers:
        x = layer(x, p)
    return x @ out


def scanned(x, layers, out):
    return lax.scan(lambda x, p: (layer(x, p), None), x, layers)[0] @ out


UNROLLED = (f32(B, T, D), [layer_params()] * LAYERS, f32(D, V))
SCANNED = (f32(B, T, D), layer_params((LAYERS,)), f32(D, V))
PROJECTIONS = 2 * B * T * D * (2 * N * H + 2 * K * H + 3 * M)
ATTENTION = 4 * B * N * T * T * H
FORWARD = LAYERS * (PROJECTIONS + ATTENTION) + 2 * B * T * D * V


def test_matmul_equals_the_formula_unrolled_and_scanned():
    flops = count_flops(unrolled, *UNROLLED)
    assert flops.matmul == FORWARD
    assert count_flops(scanned, *SCANNED) == flops
    assert count_flops(jax.jit(unrolled, donate_argnums=0), *UNROLLED) == flops


def test_total_agrees_with_xla():
    flops = count_flops(unrolled, *UNROLLED)
    assert flops.total == pytest.approx(xla_flops(unrolled, *UNROLLED), rel=0.01)
    # The element-wise work alone agrees too, not only where products drown it.
    rest = xla_flops(unrolled, *UNROLLED) - flops.matmul
    assert flops.total - flops.matmul == pytest.approx(rest, rel=0.02)


def test_gradients_count_twice_the_forward_more():
    def loss(fn, remat=False):
        fn = jax.checkpoint(fn) if remat else fn
        return jax.value_and_grad(lambda *a: jnp.sum(jnp.square(fn(*a))), argnums=(0, 1, 2))

    flops = count_flops(loss(unrolled), *UNROLLED)
    assert flops.matmul == 3 * FORWARD
    assert flops.total == pytest.approx(xla_flops(loss(unrolled), *UNROLLED), rel=0.01)
    assert count_flops(loss(scanned), *SCANNED).matmul == 3 * FORWARD
    # Recomputed all but the output's own product, which no gradient needs.
    remat = count_flops(loss(unrolled, remat=True), *UNROLLED).matmul
    assert remat == 4 * FORWARD - 2 * B * T * D * V


def test_what_no_output_needs_is_not_counted():
    dot = 2 * 64**3

    def chain(w1, w2, x):
        return jnp.sum(x @ w1 @ w2)

    square = f32(64, 64)
    # Three times the two products, less the last one's value and the gradient of x.
    gradient = jax.grad(chain, (0, 1))
    assert count_flops(gradient, square, square, square).matmul == (3 * 2 - 2) * dot
    dead_in_jit = jax.jit(lambda x: (x @ x, x + 1))
    assert count_flops(lambda x: dead_in_jit(x)[1], square) == Flops(64**2)

    def dead_in_scan(x):
        return lax.scan(lambda c, _: (c + 1, c @ c), x, None, length=3)[0]

    assert count_flops(dead_in_scan, square) == Flops(3 * 64**2)

    def relay(x):  # a carry that only a later step reads
        return lax.scan(lambda c, _: ((c[1], c[1] @ x), None), (x, x), None, length=3)[0][0]

    assert count_flops(relay, square).matmul == 3 * dot


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: lax.dot_general(x, x, (((1, 2), (1, 2)), ((0,), (0,)))), (3 * 2 * 20,) * 2),
        (lambda x: jnp.einsum("ijk,ijl->ikl", x, x), (3 * 2 * 4 * 5 * 5,) * 2),
        (lambda x: x.astype(jnp.bfloat16), (60,)),
        (lambda x: jnp.where(x > 0, x, x * 2), (180,)),
        (lambda x: x.sum(1), (60,)),
        (lambda x: lax.cumsum(x, 1), (60,)),
        (lambda x: lax.top_k(x, 2), (60,)),
        (lambda x: lax.sort(x, dimension=2), (60 * 3,)),
        (lambda x: x**3, (120,)),
        (lambda x: lax.integer_pow(x, -1), (60,)),
        (jnp.exp, (0, 0, 60)),
        (lax.logistic, (180, 0, 60)),
        (lambda x: jnp.concatenate([x.T.reshape(-1), lax.slice(x, (0, 0, 0), (1, 4, 5)).ravel()]),
         (0,)),
        (lambda x: lax.fori_loop(0, 7, lambda i, x: x * 2, x), (7 * 60,)),
        # The dearest branch, the comparison and its conversion to an index.
        (lambda x: lax.cond(x.ravel()[:1].sum() > 0, lambda x: x, lambda x: x * 2, x), (63,)),
    ],
)  # fmt: skip
def test_primitives(fn, expected):
    assert count_flops(fn, f32(3, 4, 5)) == Flops(*expected)


def test_while_counts_only_with_a_trip_count_written_in_the_program():
    def counted(x):
        return lax.while_loop(lambda c: c[0] < 10, lambda c: (c[0] + 3, c[1] @ x), (0, x))

    assert count_flops(counted, f32(8, 8)).matmul == 4 * 2 * 8**3

    def until_small(x):
        return lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ x, x)

    for fn, args in (
        (until_small, (f32(8, 8),)),
        (lambda n, x: lax.fori_loop(0, n, lambda _, y: y @ x, x), (3, f32(8, 8))),
    ):
        with pytest.raises(NotImplementedError, match="'while'"):
            count_flops(fn, *args)


def test_custom_derivatives_count_what_runs():
    @jax.custom_vjp
    def product(x):
        return x @ x

    product.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x @ x @ x,))
    dot = 2 * 16**3
    assert count_flops(product, f32(16, 16)).matmul == dot
    gradient = jax.value_and_grad(lambda x: product(x).sum())
    assert count_flops(gradient, f32(16, 16)).matmul == 4 * dot


def test_sharded_programs_count_the_whole_mesh():
    dot = 2 * 64**3
    mesh = AbstractMesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x"))
    assert count_flops(mapped, f32(64, 64), f32(64, 64)).matmul == dot
    # A sum over devices: 8 blocks of [8, 64] times [64, 64], and one addition a number on each.
    summed = jax.shard_map(
        lambda a: jax.lax.psum(a @ a.T, "x"),
        mesh=mesh,
        in_specs=P(None, "x"),
        out_specs=P(),
    )
    assert count_flops(summed, f32(64, 64)) == Flops(dot + 8 * 64**2, dot)
    one = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(one, P("x"))
    jitted = jax.jit(lambda a, b: a @ b, in_shardings=(rows, None), out_shardings=rows)
    sharded = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=rows)
    assert count_flops(jitted, sharded, f32(64, 64)) == Flops(dot, dot)
    assert xla_flops(jitted, sharded, f32(64, 64)) == pytest.approx(dot, rel=1e-4)


def double(x_ref, out_ref):
    out_ref[...] = x_ref[...] * 2


def foreign(x):
    return jax.ffi.ffi_call("other_library", f32(8, 8))(x)


def test_kernels_count_their_estimate_or_are_refused():
    cost = pl.CostEstimate(flops=64, transcendentals=3, bytes_accessed=512)
    kernel = pl.pallas_call(double, out_shape=f32(8, 8), cost_estimate=cost)
    uncosted = pl.pallas_call(double, out_shape=f32(8, 8), name="double")
    assert count_flops(kernel, f32(8, 8)) == Flops(64, 0, 3)
    with pytest.raises(NotImplementedError, match="pallas_call double has no cost_estimate"):
        count_flops(uncosted, f32(8, 8))
    with pytest.raises(NotImplementedError, match="'ffi_call' other_library.*_LEAVES"):
        count_flops(foreign, f32(8, 8))


def test_xla_flops_is_none_where_xla_would_misread():
    def loop(length, unroll):
        return lambda x: lax.scan(lambda x, _: (x @ x, None), x, None, length, unroll=unroll)[0]

    dot = 2 * 64**3
    assert xla_flops(scanned, *SCANNED) is None
    assert xla_flops(loop(4, 1), f32(64, 64)) is None
    assert xla_flops(loop(4, 2), f32(64, 64)) is None
    assert xla_flops(loop(4, True), f32(64, 64)) == 4 * dot
    assert xla_flops(foreign, f32(8, 8)) is None
    assert xla_flops(pl.pallas_call(double, out_shape=f32(8, 8)), f32(8, 8)) is None
    assert xla_flops(lambda x: x.T, f32(8, 8)) == 0.0
