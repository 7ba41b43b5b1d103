"""One update: the running mean, separate rates, steps without a loss; what a step keeps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import train as train_config
from kvpacket_jax.data import EncodedExample
from kvpacket_jax.measure.memory import memory_analysis
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.train import loss as loss_lib
from kvpacket_jax.train import setup
from kvpacket_jax.train import step as step_lib
from kvpacket_jax.train.shapes import Fitted, Shape
from kvpacket_jax.train.step import Rates
from models import CONFIGS
from models.low_rank import Factors
from models.transformer import Transformer, init_params

OPTIMIZER = setup.make_optimizer(train_config.get_config())


def adapter(value: float) -> Adapter:
    writer = {"q": Factors(jnp.full((2, 8, 1), value), jnp.full((2, 1, 4, 2), value))}
    return Adapter(jnp.full((3, 8), value), jnp.zeros((0, 8)), writer=writer)


def sums_of(gradient: float, tokens: float = 4.0) -> step_lib.Sums:
    metrics = {name: jnp.float32(tokens) for name in step_lib.METRICS}
    return step_lib.Sums(adapter(gradient), jnp.float32(2.0), metrics)


def rates(tokens: float, writer: float) -> Rates:
    return Rates(*map(jnp.float32, (tokens, writer, writer)))


def update(state, sums, rates, mean_decay: float = 0.97, reduction: str = "mean_questions"):
    return step_lib.update(OPTIMIZER, reduction, mean_decay, state, sums, rates)


def test_the_mean_follows_closely_at_first_and_then_by_its_decay():
    state, mean = step_lib.init_state(adapter(1.0), OPTIMIZER), 1.0
    for step in range(6):
        state, _ = update(state, sums_of(1.0), rates(0.1, 0.1), mean_decay=0.25)
        decay = min(0.25, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * float(state.adapter.header[0, 0])
        for x in jax.tree.leaves(state.mean):
            np.testing.assert_allclose(x, mean if x.size else x, rtol=1e-6)
    assert int(state.step) == 6 and mean > float(state.adapter.header[0, 0]) + 0.01


def test_soft_tokens_and_writer_have_rates_of_their_own():
    state, _ = update(step_lib.init_state(adapter(1.0), OPTIMIZER), sums_of(1.0), rates(0.1, 0.01))
    np.testing.assert_allclose(state.adapter.header, 0.9, rtol=1e-5)  # Adam's first step
    for x in state.adapter.writer["q"]:
        np.testing.assert_allclose(x, 0.99, rtol=1e-5)


@pytest.mark.parametrize("reduction", loss_lib.REDUCTIONS)
def test_no_microbatch_weighs_more_than_its_bound(reduction):
    small, large = sums_of(0.01), sums_of(100.0)
    bound = functools.partial(step_lib.bounded, reduction=reduction, clip_norm=2.0)
    jax.tree.map(
        np.testing.assert_array_equal, bound(small.gradients, small.metrics), small.gradients
    )
    gradients = bound(large.gradients, large.metrics)
    _, metrics = update(
        step_lib.init_state(adapter(1.0), OPTIMIZER),
        large._replace(gradients=gradients),
        rates(0.1, 0.1),
        reduction=reduction,
    )
    np.testing.assert_allclose(metrics["gradient_norm"], 2.0, rtol=1e-6)
    weightless = {name: jnp.float32(0) for name in step_lib.METRICS}
    assert np.isfinite(optax.tree.norm(bound(adapter(0.0), weightless)))
    assert not np.isfinite(optax.tree.norm(bound(adapter(np.inf), large.metrics)))


@pytest.mark.parametrize("reduction", loss_lib.REDUCTIONS)
def test_a_step_whose_questions_weigh_nothing_changes_nothing(reduction):
    began = step_lib.init_state(adapter(1.0), OPTIMIZER)
    zero = step_lib.zero_sums(began.adapter)
    state, metrics = update(began, zero, rates(0.1, 0.1), reduction=reduction)
    assert metrics["loss"] == metrics["gradient_norm"] == 0 and int(state.step) == 1
    jax.tree.map(np.testing.assert_array_equal, state.adapter, began.adapter)


def test_remat_saves_memory_where_layers_are_scanned():
    """XLA for CPUs undoes it in unrolled layers; here the compiled step must show it."""
    config = dataclasses.replace(CONFIGS["smollm2-135m"], num_layers=8, scan_layers=True)
    shape = Shape(16, documents=4, tokens=240, questions=4, row=48, new_tokens=16, answers=64)
    example = Fitted("", (), EncodedExample([0], [[0]] * 4, [[0]] * 4))
    batch = loss_lib.pack([example], [[[0]] * 4], [[1.0] * 4], shape)
    hidden = jax.ShapeDtypeStruct((1, 4, 16, config.dim), jnp.float32)
    adapter = Adapter(*(jax.ShapeDtypeStruct((8, config.dim), jnp.float32),) * 2)

    def temporaries(remat: bool) -> int:
        module = Transformer(dataclasses.replace(config, remat=remat))
        params = jax.eval_shape(functools.partial(init_params, module.config), jax.random.key(0))

        def step(params, adapter, hidden):
            zero = step_lib.zero_sums(adapter)
            return step_lib.add_microbatch(
                module, "kl", 4, params, adapter, None, zero, batch, hidden
            )

        return memory_analysis(step, params, adapter, hidden).temporaries

    assert temporaries(True) < 0.5 * temporaries(False)
