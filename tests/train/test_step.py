"""One update: the running mean, separate rates of soft tokens and writer, steps without a loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import train as train_config
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.train import loss as loss_lib
from kvpacket_jax.train import setup
from kvpacket_jax.train import step as step_lib
from kvpacket_jax.train.step import Rates
from models.low_rank import Factors

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
