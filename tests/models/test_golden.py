"""The tiny models against what transformers computed from the same checkpoints."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import kv_cache, rope
from tests.support.golden import FAMILIES, GOLDEN


@functools.partial(jax.jit, static_argnames="module")
def forward(module, params, ids, positions, valid):
    """Plain passes over padded rows: logits `[B, T, V]` and the cache."""
    model = module.bind({"params": params})
    tail = kv_cache.init(module.config, *ids.shape, jnp.float32)
    x, cache = model.run_layers(model.embed(ids), positions, valid, (), tail, 0)
    return model.logits(x), cache


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_caches_of_whole_prompts(tiny, name, scan_layers):
    model, arrays = tiny(name, scan_layers=scan_layers), np.load(GOLDEN / f"forward_{name}.npz")
    prompts = sorted({key.split("/")[0] for key in arrays.files if key.endswith("/logits")})
    assert "gappy" in prompts and len(prompts) > 1
    lengths = [len(arrays[f"{p}/ids"]) for p in prompts]
    ids, positions = np.zeros((2, len(prompts), max(lengths)), np.int32)
    for row, (prompt, n) in enumerate(zip(prompts, lengths, strict=True)):
        ids[row, :n] = arrays[f"{prompt}/ids"]
        positions[row, :n] = arrays["gappy/positions"] if prompt == "gappy" else np.arange(n)
    valid = np.arange(max(lengths)) < np.array(lengths)[:, None]
    logits, cache = forward(model.module, model.params, ids, positions, valid)
    for row, (prompt, n) in enumerate(zip(prompts, lengths, strict=True)):
        # The reference's own float32 angles are inexact at the large positions of this one.
        far = prompt == "gappy"
        assert abs(logits[row, :n] - arrays[f"{prompt}/logits"]).max() < (5e-3 if far else 1e-3)
        for part, layers in (("k", cache.k), ("v", cache.v)):
            actual = np.stack([np.asarray(a[row, :n]).transpose(1, 0, 2) for a in layers])
            difference = abs(actual - arrays[f"{prompt}/{part}"]).max()
            assert difference < (1e-3 if far else 2e-4), (prompt, part, difference)


@pytest.mark.parametrize("name", FAMILIES)
def test_frequencies_and_angles(tiny, name):
    config, arrays = tiny(name).config, np.load(GOLDEN / f"forward_{name}.npz")
    actual = rope.frequencies(config.rope, config.head_dim)
    np.testing.assert_allclose(actual, arrays["rope/inv_freq"], rtol=1e-6)
    positions = arrays["rope/positions"]
    limit = max(config.max_positions, int(positions.max()) + 1)
    parts = rope.cos_sin(config.rope, config.head_dim, jnp.asarray(positions), limit)
    # The reference's angle is a float32 product, so its error grows with the position.
    slack = 1e-6 + positions[:, None] * 2.0**-23
    for part, expected in zip(parts, (arrays["rope/cos"], arrays["rope/sin"]), strict=True):
        twice = np.concatenate([part, part], axis=-1)  # both halves of a head have the same angles
        assert (abs(twice - expected) <= slack).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_moved_keys(tiny, name):
    config, arrays = tiny(name).config, np.load(GOLDEN / f"forward_{name}.npz")
    moves = sorted({k.split("/")[0] for k in arrays.files if k.startswith("rerotate_")})
    assert len(moves) == 4
    for case in moves:
        difference = arrays[f"{case}/p_new"] - arrays[f"{case}/p_orig"]
        x = arrays[f"{case}/x"].transpose(1, 0, 2)
        # One difference for each slot, of all its heads.
        y = rope.move(config, jnp.asarray(x), jnp.asarray(difference)[:, None])
        np.testing.assert_allclose(y.transpose(1, 0, 2), arrays[f"{case}/y"], atol=2e-4)
