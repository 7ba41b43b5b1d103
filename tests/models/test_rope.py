"""RoPE: exact angles at every position, every scheme's frequencies, and the move."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from models import rope
from models.rope import Rope
from tests.support.configs import LIMIT, ROPES, tiny


def by_hand(kind: str, head_dim: int) -> list[float]:
    """The published formulas, one frequency at a time."""
    spec, actual = ROPES[kind], []
    for i in range(head_dim // 2):
        freq = 1 / spec.theta ** (2 * i / head_dim)
        wavelength = 2 * math.pi / freq
        if kind == "linear":
            freq /= spec.factor
        elif kind == "llama3":
            original, factor = spec.original_max_positions, spec.factor
            if wavelength > original / spec.low_freq_factor:
                freq /= factor
            elif wavelength > original / spec.high_freq_factor:
                smooth = (original / wavelength - spec.low_freq_factor) / (
                    spec.high_freq_factor - spec.low_freq_factor
                )
                freq = (1 - smooth) * freq / factor + smooth * freq
        elif kind == "yarn":
            # Dimensions that turn more than 32 times in the original context are kept, those that
            # turn less than once are divided by the factor, with a ramp over whole dimensions.
            edge = lambda turns: (  # noqa: E731
                head_dim
                * math.log(spec.original_max_positions / (turns * 2 * math.pi))
                / (2 * math.log(spec.theta))
            )
            low, high = math.floor(edge(32)), math.ceil(edge(1))
            share = min(max((i - low) / (high - low), 0), 1)
            freq = freq / 4 * share + freq * (1 - share)
        actual.append(freq)
    return actual


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kind", ROPES)
def test_frequencies_are_the_published_formulas(kind, head_dim):
    np.testing.assert_allclose(
        rope.frequencies(ROPES[kind], head_dim), by_hand(kind, head_dim), rtol=1e-12
    )


@pytest.mark.parametrize("kind", ROPES)
def test_cos_and_sin_are_exact_at_every_position(kind):
    rng = np.random.default_rng(0)
    ends = [0, 1, 511, 512, 513, 8191, 8192, LIMIT - 513, LIMIT - 512, LIMIT - 1]
    positions = np.concatenate([ends, rng.integers(0, LIMIT, 5000)]).astype(np.int32)
    positions = np.concatenate([positions, -positions])
    cos, sin = rope.cos_sin(ROPES[kind], 128, jnp.asarray(positions), LIMIT)
    angles = positions[:, None].astype(np.float64) * rope.frequencies(ROPES[kind], 128)
    assert abs(np.asarray(cos, np.float64) - np.cos(angles)).max() < 1e-6
    assert abs(np.asarray(sin, np.float64) - np.sin(angles)).max() < 1e-6


@pytest.mark.parametrize("kind", ROPES)
def test_a_moved_key_is_the_key_of_its_new_place(kind):
    # Yarn's amplitude too: it is in the key once, however often the key is moved.
    spec = tiny(kind)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 2, 16)), jnp.float32)
    at = lambda first: rope.rotate_heads(spec, x, first + jnp.arange(3)[None])  # noqa: E731
    for first, difference in ((0, 5), (0, 100_000), (120_000, -119_000), (7, -7)):
        moved = rope.move(spec, at(first), jnp.int32(difference))
        np.testing.assert_allclose(moved, at(first + difference), atol=2e-5)
        back = rope.move(spec, moved, jnp.int32(-difference))
        np.testing.assert_allclose(back, at(first), atol=2e-6)
    np.testing.assert_array_equal(rope.move(spec, at(9), jnp.int32(0)), at(9))


def test_scores_depend_on_differences_only():
    spec = tiny("yarn")
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 16))
    place = lambda x, p: rope.rotate_heads(spec, jnp.asarray(x), jnp.full((1, 1), p))  # noqa: E731
    score = lambda p, s: float(jnp.sum(place(q, p) * place(k, s)))  # noqa: E731
    assert score(131_000, 130_990) == pytest.approx(score(10, 0), abs=1e-4)
    plain = rope.rotate(
        jnp.asarray(q), *rope.cos_sin(spec.rope, 16, jnp.full((1, 1, 1), 10), LIMIT)
    )
    factor = float(jnp.linalg.norm(place(q, 10)) / jnp.linalg.norm(plain))
    assert factor == pytest.approx(ROPES["yarn"].attention_factor, rel=1e-5)


def test_both_spellings_of_a_config_are_read():
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32_768}
    for kind, theta, params in (
        ("default", 1_000_000.0, {}),
        ("linear", 10_000.0, {"factor": 4.0}),
        ("llama3", 500_000.0, llama3),
        ("yarn", 1_000_000.0, yarn),
    ):
        old = {"rope_theta": theta, "rope_scaling": {"type": kind, **params}}
        new = {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **params}}
        for hf in (old, new):
            assert rope.from_hf({"max_position_embeddings": 32_768, **hf}, "") == ROPES[kind]
    assert rope.from_hf({"rope_theta": 1e6, "rope_scaling": None}, "") == Rope(1e6)
    assert rope.max_positions(ROPES["yarn"], 32_768) == LIMIT
