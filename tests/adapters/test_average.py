"""Means of adapters: the sum of their changes, as near as a rank allows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvpacket_jax.adapters.average import average
from kvpacket_jax.packets import adapter as adapter_lib
from models import low_rank
from tests.support.configs import tiny

CONFIG = tiny("default")
PRIMER = jnp.arange(3, dtype=jnp.int32)


def trained(seed: int, rank: int, names=("q", "o"), primer=PRIMER):
    key = jax.random.key(seed)
    factors = low_rank.init(CONFIG, key, rank, names)
    factors = {n: f._replace(b=jax.random.normal(key, f.b.shape)) for n, f in factors.items()}
    return adapter_lib.empty(CONFIG.dim)._replace(primer=primer, writer=factors)


def change(adapter, name: str) -> np.ndarray:
    """The change of a matrix, written out: [L, inputs, outputs]."""
    a, b = (np.asarray(x, np.float64) for x in adapter.writer[name])
    return a.reshape(len(a), -1, a.shape[-1]) @ b.reshape(*b.shape[:2], -1)


def test_a_mean_with_rank_for_all_is_the_weighted_sum():
    one, other = trained(0, 2), trained(1, 3)
    mean = average([one, other], [0.3, 0.5], rank=5)
    for name in ("q", "o"):
        expected = 0.3 * change(one, name) + 0.5 * change(other, name)
        np.testing.assert_allclose(change(mean, name), expected, atol=0.02)  # bfloat16
        assert mean.writer[name].a.shape[-1] == 5
        assert mean.writer[name].b.shape[2:] == one.writer[name].b.shape[2:]
    np.testing.assert_array_equal(mean.primer, PRIMER)


def test_a_lower_rank_keeps_the_largest_singular_values():
    one, other = trained(0, 2), trained(1, 3)
    mean = average([one, other], [1.0, 1.0], rank=2)
    whole = change(one, "q") + change(other, "q")
    u, values, v = np.linalg.svd(whole)
    nearest = (u[..., :2] * values[:, None, :2]) @ v[:, :2]
    np.testing.assert_allclose(change(mean, "q"), nearest, atol=0.03)
    many = average([one, other] * 9, [1.0] * 18, rank=45)  # more than a matrix of this size has
    np.testing.assert_allclose(change(many, "q"), 9 * whole, atol=0.2)  # bfloat16
    assert average([one], [1.0], rank=9).writer["q"].a.shape[-1] == 2  # no larger than it was


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (trained(1, 2)._replace(writer=None), "Adapter 2 has no writer"),
        (trained(1, 2, primer=PRIMER + 1), "The primer of adapter 2 is another"),
        (trained(1, 2, primer=None), "The primer of adapter 2 is another"),
        (trained(1, 2)._replace(header=jnp.ones((1, CONFIG.dim))), "The header of adapter 2"),
        (trained(1, 2, names=("q",)), "different matrices"),
    ],
)
def test_adapters_that_do_not_begin_alike_are_refused(other, named):
    with pytest.raises(ValueError, match=named):
        average([trained(0, 2), other], [0.5, 0.5], rank=2)


def test_each_adapter_has_a_share():
    with pytest.raises(ValueError, match="1 adapters have 2 shares"):
        average([trained(0, 2)], [0.5, 0.5], rank=2)
