"""Products with weights: the same numbers however many rows there are, and however it is done."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.low_rank import Changed
from models.precision import FEW_ROWS, _on_left, _on_right, look_up, project

D, N, H = 48, 6, 16
SPECS = {"BTD,NHD->BTNH": (N, H, D), "BTNH,DNH->BTD": (D, N, H), "BTD,DM->BTM": (D, 80)}
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def operands(spec: str, rows: int, dtype: str):
    shape = SPECS[spec]
    x = jax.random.normal(jax.random.key(0), (1, rows, *((N, H) if spec[2] == "N" else (D,))))
    w = jax.random.normal(jax.random.key(1), shape) / D**0.5
    return x.astype(dtype).astype(jnp.float32), w.astype(dtype)


def exact(spec: str, x, w) -> np.ndarray:
    return np.einsum(spec, *(np.asarray(a, np.float64) for a in (x, w)))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1])
def test_a_product_is_the_same_at_every_number_of_rows(spec, rows, dtype):
    x, w = operands(spec, rows, dtype)
    close = dict(atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    actual = jax.jit(project, static_argnums=0)(spec, x, w)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, exact(spec, x, w), **close)
    many = jax.vmap(lambda x: project(spec, x, w))(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(many[1], 2 * exact(spec, x, w), **close)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("rows", [2, FEW_ROWS + 1])
def test_gradients_are_those_of_the_product(spec, rows, dtype):
    x, w = operands(spec, rows, dtype)
    factors = jax.random.normal(jax.random.key(2), project(spec, x, w).shape)

    def gradients(function, x, w):
        return jax.grad(lambda x, w: jnp.sum(factors * function(spec, x, w)), (0, 1))(x, w)

    wide = x, w.astype(jnp.float32)
    pairs = zip(gradients(project, x, w), gradients(jnp.einsum, *wide), strict=True)
    for actual, expected in pairs:
        scale = np.abs(expected).max() * TOLERANCE[dtype]
        np.testing.assert_allclose(np.asarray(actual, np.float32), expected, atol=scale)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_few_rows_in_a_scan_with_remat_have_the_same_gradients(dtype):
    """As training on a CPU has them where layers are scanned."""
    x, _ = operands("BTD,DM->BTM", 3, dtype)
    stack = (jax.random.normal(jax.random.key(5), (4, D, D)) / D**0.5).astype(dtype)

    def scanned(x):
        step = jax.checkpoint(lambda x, w: (jnp.tanh(project("BTD,MD->BTM", x, w)), None))
        return jnp.sum(jax.lax.scan(step, x, stack)[0] ** 2)

    def looped(x):
        for w in stack:
            x = jnp.tanh(jnp.einsum("BTD,MD->BTM", x, w.astype(jnp.float32)))
        return jnp.sum(x**2)

    expected = jax.grad(looped)(x)
    scale = 2 * np.abs(expected).max() * TOLERANCE[dtype]
    np.testing.assert_allclose(jax.grad(scanned)(x), expected, atol=scale)


def test_changes_of_few_rows_are_added():
    spec = "BTD,NHD->BTNH"
    x, w = operands(spec, 3, "float32")
    a = jax.random.normal(jax.random.key(3), (D, 2))
    b = jax.random.normal(jax.random.key(4), (2, N, H))
    rows = jnp.array([[1.0, 0.0, 1.0]])
    expected = exact(spec, x, w)
    expected += rows[..., None, None] * np.einsum("BTD,DR,RNH->BTNH", x, a, b)
    np.testing.assert_allclose(project(spec, x, Changed(w, a, b, rows)), expected, atol=1e-3)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_both_forms_of_a_product_are_one(dtype):
    x, w = operands("BTD,DM->BTM", 5, dtype)
    left, right = (f(x[0], w.T) for f in (_on_left, _on_right))
    np.testing.assert_allclose(left, right, atol=TOLERANCE[dtype])


def test_a_weight_of_another_order_is_refused():
    with pytest.raises(ValueError, match="BTD,NDH->BTNH has the weight's axes neither"):
        project("BTD,NDH->BTNH", jnp.ones((1, 2, D)), jnp.ones((N, D, H)))


@pytest.mark.parametrize(("platform", "turned"), [("cpu", 1), ("cuda", 0), ("tpu", 0)])
def test_only_programs_for_cpus_turn_products_round(platform, turned):
    traced = jax.jit(project, static_argnums=0).trace(
        "BTNH,DNH->BTD", *operands("BTNH,DNH->BTD", 2, "bfloat16")
    )
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("optimization_barrier") == turned


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other compilers choose by themselves")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_few_rows_have_the_weight_on_the_left_in_the_compiled_program(dtype):
    """Else XLA for CPUs packs the weight at every call, and decoding takes twice as long."""
    for rows in (2, FEW_ROWS + 1):
        x, w = operands("BTNH,DNH->BTD", rows, dtype)
        compiled = jax.jit(project, static_argnums=0).lower("BTNH,DNH->BTD", x, w).compile()
        assert (f"f32[{D},{rows}]" in compiled.as_text()) == (rows <= FEW_ROWS)


def test_rows_of_a_table_are_looked_up():
    table = jax.random.normal(jax.random.key(0), (32, D))
    ids = jnp.array([[3, 31], [0, 3]])
    for dtype in TOLERANCE:
        given = table.astype(dtype)
        np.testing.assert_array_equal(look_up(given, ids), given.astype(jnp.float32)[ids])


def test_a_loop_looks_up_rows_without_copying_the_table():
    """As decoding does: XLA moves what it can do to the whole table out of the loop."""
    table = jnp.ones((4096, D), jnp.bfloat16)

    def sum_of_rows(table, id):
        step = lambda i, state: (state[0] + look_up(table, state[1]), state[1] * 7 % 4096)  # noqa: E731
        return jax.lax.fori_loop(0, id[0], step, (jnp.zeros((1, D)), id))[0]

    # The flag of users' programs, which the tests' turn off; jax 0.11 no longer knows it.
    known = jax.version.__version_info__ < (0, 11) and jax.default_backend() == "cpu"
    options = {"xla_cpu_use_fusion_emitters": True} if known else {}
    compiled = jax.jit(sum_of_rows).lower(table, jnp.array([5])).compile(options)
    assert compiled.memory_analysis().temp_size_in_bytes < table.nbytes / 4
