"""Real models against `transformers` with torch, whose numbers make_parity.py wrote."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from kvpacket_jax.packets.prefill import pad_rows
from models import kv_cache

DATA = pathlib.Path(__file__).parents[1] / "resources"


@functools.partial(jax.jit, static_argnames="module")
def last_logits(module, params, ids_BxT, lengths_B):
    """One plain pass over padded rows: float32 `[B, V]`, of each row's last token."""
    model = module.bind({"params": params})
    places = jnp.broadcast_to(jnp.arange(ids_BxT.shape[1]), ids_BxT.shape)
    tail = kv_cache.init(module.config, *ids_BxT.shape, jnp.float32)
    valid = places < lengths_B[:, None]
    x, _ = model.run_layers(model.embed(ids_BxT), places, valid, (), tail, 0)
    last = jnp.take_along_axis(x, (lengths_B - 1)[:, None, None], axis=1)
    return model.logits(last)[:, 0]


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_logits_are_those_of_transformers(demo_folder, name):
    theirs = np.load(DATA / f"parity_{name}.npz")
    model = models.load(str(demo_folder(name)), "float32")
    number = sum(key.endswith("/ids") for key in theirs.files)
    prompts = [theirs[f"{i}/ids"].tolist() for i in range(number)]
    assert number >= 4 and len(prompts[-1]) > 250
    for i, prompt in enumerate(prompts):
        assert model.tokenizer.encode(str(theirs[f"{i}/text"]), special=True) == prompt
    ours = []
    for group in (prompts[:-1], prompts[-1:]):  # the long one apart, or all are padded to it
        ids, lengths = pad_rows(group, max(map(len, group)))
        logits = last_logits(model.module, model.params, ids[: len(group)], lengths[: len(group)])
        ours += [*np.asarray(logits)]
    for i, row in enumerate(ours):
        assert abs(row[theirs["chosen"]] - theirs[f"{i}/logits"]).max() < 1e-3
        assert abs(row[theirs[f"{i}/top"]] - theirs[f"{i}/top_logits"]).max() < 1e-3
        whole = np.logaddexp.reduce(row.astype(np.float64))
        assert abs(whole - theirs[f"{i}/logsumexp"]) < 1e-3
        assert np.argmax(row) == theirs[f"{i}/top"][0]
