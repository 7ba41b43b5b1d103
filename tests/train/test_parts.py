"""Runs that train some of an adapter's parts."""

import shutil

import jax.numpy as jnp
import numpy as np

import kvpacket_jax as kvp
import models
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.train import setup
from tests.support.training import check_equal, config_of, steps_done, train


def test_a_writer_alone_is_trained(byte_model, tmp_path):
    """Without soft tokens, whose empty arrays may be one buffer."""
    config = config_of(byte_model, header=0, trailer=0, num_steps=2)
    trained = train(config, tmp_path / "run")
    assert trained.num_tokens == 0 and set(trained.writer) == {"q", "k", "v", "o"}
    assert steps_done(tmp_path / "run") == 2


def test_a_learned_primer_is_trained_when_what_it_began_with_is_gone(byte_model, tmp_path):
    model = models.load(str(byte_model), "float32")
    primed = adapter_lib.empty(model.config.dim)._replace(primer=jnp.arange(5, dtype=jnp.int32))
    adapter_lib.save_adapter(tmp_path / "primer", primed, {"model": model.fingerprint})
    given = {"primer": str(tmp_path / "primer"), "learn_primer": True, "num_steps": 1}
    config = config_of(byte_model, header=0, trailer=0, writer_rank=0, **given)
    begun = train(config, tmp_path / "run").primer
    shutil.rmtree(tmp_path / "primer")
    config.num_steps = 2
    learned = train(config, tmp_path / "run").primer
    assert learned.shape == begun.shape == (5, model.config.dim)
    assert not np.array_equal(begun, model.params["embedding"][:5])
    assert steps_done(tmp_path / "run") == 2 and not np.array_equal(learned, begun)


def test_a_distiller_is_trained_and_its_packets_answer(byte_model, tmp_path):
    """The writer stays as it began; the run goes on after a stop as if there had been none."""
    parts = {"header": 1, "trailer": 0, "distiller_rank": 2, "keeps": (0.5, 0.25)}
    config = config_of(byte_model, **parts, learn_writer=False, num_steps=2)
    train(config, tmp_path / "run")
    config.num_steps = 4
    trained = train(config, tmp_path / "run")
    check_equal(trained, train(config, tmp_path / "whole"))
    model = models.load(str(byte_model), "float32")
    began = adapter_lib.rounded(setup.initial_adapter(config, model))
    check_equal(trained.writer, began.writer)
    assert not np.array_equal(trained.distiller.out, began.distiller.out)

    folder = tmp_path / "run" / "adapter"
    given = {"adapter": folder, "template": "completion", "compress": "kv_distill"}
    store = kvp.Store(tmp_path / "packets", model, keep=0.25, **given)
    store.add({"a": "The ferry leaves at noon.", "b": "The bus leaves at one."})
    assert store.ask("When?", ["b", "a"], new_tokens=4).documents == ("b", "a")
