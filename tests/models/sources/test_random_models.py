"""Named shapes with random weights: what a cost may depend on is right, and stays the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from kvpacket_jax.measure.memory import memory_analysis, tree_bytes
from kvpacket_jax.packets.prefill import prefill
from kvpacket_jax.serve import loading
from models.sources import random_models
from models.transformer import init_params

SMALL = dataclasses.replace(
    models.CONFIGS["qwen2.5-coder-0.5b"], vocab_size=512, dim=96, num_layers=2, mlp_dim=320
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(models.CONFIGS, "small", SMALL)
    other = dataclasses.replace(SMALL, family="qwen3", qkv_bias=False, qk_norm=True)
    monkeypatch.setitem(models.CONFIGS, "other", other)


@pytest.mark.parametrize(("name", "scan_layers"), [("small", False), ("other", True)])
def test_weights_are_of_the_shape_and_spread_of_fresh_ones(name, scan_layers):
    model = models.load(f"random:{name}", "bfloat16", scan_layers=scan_layers)
    fresh = jax.jit(lambda key: init_params(model.config, key, jnp.bfloat16))(jax.random.key(0))
    assert jax.tree.structure(model.params) == jax.tree.structure(fresh)
    for actual, expected in zip(jax.tree.leaves(model.params), jax.tree.leaves(fresh), strict=True):
        assert (actual.shape, actual.dtype) == (expected.shape, jnp.bfloat16)
        a, b = (np.asarray(x, np.float32) for x in (actual, expected))
        assert a.std() == pytest.approx(b.std(), rel=0.05)
        assert abs(a.mean() - b.mean()) <= 0.02 * max(b.std(), b.max())
    logits = prefill(model, (), [[1, 2, 3]], 0).logits
    assert 0.01 < float(logits.std()) < 10


def test_they_are_always_the_same_and_no_two_arrays_are_equal():
    one, two = (models.load("random:small", "float32") for _ in range(2))
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_array_equal(a, b)
    layers = [layer["mlp"] for layer in one.params["layers"]]
    flat = [np.sort(np.asarray(m[k]).ravel()) for m in layers for k in ("gate", "up")]
    assert not any(np.array_equal(a, b) for i, a in enumerate(flat) for b in flat[:i])
    assert one.fingerprint == two.fingerprint == models.load("random:small").fingerprint
    assert one.fingerprint.startswith("random") and one.tokenizer is None
    assert one.fingerprint != models.load("random:other", "float32").fingerprint
    # Stacked layers are drawn otherwise.
    assert one.fingerprint != models.load("random:small", "float32", scan_layers=True).fingerprint


def test_an_array_is_never_held_in_another_dtype():
    array = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16)
    memory = memory_analysis(
        lambda: random_models._draw(array.shape, jnp.bfloat16, jnp.uint32(0), 1.0)
    )
    assert memory.outputs == tree_bytes(array) > memory.temporaries


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"named shape 'lama-3.1-8b'.*mean llama-3.1-8b.*qwen3-4b"):
        models.load("random:lama-3.1-8b")


def test_programs_that_need_text_say_that_it_cannot_read(tmp_path):
    model = models.load("random:small", "float32")
    with pytest.raises(ValueError, match="random:small came without a tokenizer"):
        model.check_tokenizer()
    with pytest.raises(ValueError, match="random:small is a shape .* cannot read texts"):
        loading.load_for_store("random:small", "float32", tmp_path)
