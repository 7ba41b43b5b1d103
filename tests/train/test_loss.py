"""Distillation against the published trainer: loss, gradients, optimiser steps, all families."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import train as train_config
from kvpacket_jax import teacher
from kvpacket_jax.methods import METHODS
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets import packet
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.compose import compose
from kvpacket_jax.train import loss as loss_lib
from kvpacket_jax.train import setup
from kvpacket_jax.train import step as step_lib
from models import low_rank
from tests.support.golden import FAMILIES, GOLDEN
from tests.support.golden_training import Golden, pack, read_sample, shape_of
from tests.support.writers import as_published, published_writer

# The goldens' own noise is 1e-4 of the largest gradient; a wrong mask is off by more than 1.
RELATIVE = 2e-4


# What depends on the family is held to the goldens of all; the rest is tested with one.
one_family = pytest.mark.parametrize("golden", FAMILIES[:1], indirect=True)


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request, tiny):
    arrays = np.load(GOLDEN / f"train_{request.param}.npz")
    model = tiny(request.param, scan_layers=True)
    samples = {s: read_sample(model, arrays, s) for s in ("s1", "s2")}
    adapter = Adapter(jnp.asarray(arrays["header0"]), jnp.asarray(arrays["trailer0"]))
    return Golden(model, arrays, samples, adapter, shape_of(samples.values()))


@functools.partial(
    jax.jit, static_argnames=("module", "loss", "learning", "learn_writer", "opening")
)
def add(
    module, params, adapter, batch, hidden, loss="kl", learning=1_000, primer=None, **rest
) -> step_lib.Sums:
    zero = step_lib.zero_sums(adapter)
    return step_lib.add_microbatch(
        module, loss, learning, params, adapter, primer, zero, batch, hidden, **rest
    )


def check_gradient(gradient: Adapter, arrays, name: str):
    expected = {"header": gradient.header, "trailer": gradient.trailer}
    for matrix, factors in (gradient.writer or {}).items():
        for letter, found in zip("AB", factors, strict=True):
            expected[f"lora_{matrix}_{letter}"] = as_published(found, letter)
    for part, found in expected.items():
        if found.size:
            known = arrays[f"{name}/grad_{part}"]
            np.testing.assert_allclose(found, known, atol=RELATIVE * np.abs(known).max())


@one_family
def test_gradients_after_a_primer_are_the_slope_of_the_loss(golden):
    """After one that is read before, and after a learned one, which the same embeddings begin."""
    model, _, samples, adapter, shape = golden
    microbatch = pack(shape, samples["s1"])
    changes = low_rank.init(model.config, jax.random.key(0), 2, ("q", "k", "v", "o"))
    adapter = adapter._replace(writer=jax.tree.map(lambda x: x + 0.05, changes))
    ids = jnp.asarray(samples["s2"].example.documents[0][:12], jnp.int32)
    empty = adapter_lib.empty(model.config.dim)
    cache = packet.read_primer(model, empty._replace(primer=ids))
    learned = jnp.asarray(model.params["embedding"], jnp.float32)[ids]

    def sums(adapter, primer):
        return add(model.module, model.params, adapter, *microbatch, primer=primer)

    def slope_along(adapter, direction, primer, step=2e-3):
        ahead, behind = (
            jax.tree.map(lambda x, d, s=s: x + s * d, adapter, direction) for s in (step, -step)
        )
        return (sums(ahead, primer).loss - sums(behind, primer).loss) / (2 * step)

    unseen = cache._replace(valid=jnp.zeros_like(cache.valid))  # as without one, in one program
    losses = [float(sums(adapter, unseen).loss)]
    for primer, embedded in ((cache, None), (None, learned)):
        begun = adapter._replace(primer=embedded)
        found = sums(begun, primer)
        leaves, tree = jax.tree.flatten(begun)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        drawn = [jax.random.normal(k, x.shape) * x.std() for k, x in zip(keys, leaves, strict=True)]
        direction = jax.tree.unflatten(tree, drawn)
        expected = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, found.gradients, direction)))
        np.testing.assert_allclose(slope_along(begun, direction, primer), expected, rtol=0.01)
        losses.append(float(found.loss))
    bare, read, of_embeddings = losses
    assert read == pytest.approx(of_embeddings, rel=1e-4) != pytest.approx(bare, rel=0.01)


def test_loss_and_gradient_equal_published(golden):
    check_loss(golden, "kl", "kl")


@one_family
def test_cross_entropy_and_gradient_equal_published(golden):
    check_loss(golden, "ce", "cross_entropy")


@pytest.mark.slow
@pytest.mark.parametrize("golden", FAMILIES[1:], indirect=True)
def test_cross_entropy_of_other_families(golden):
    check_loss(golden, "ce", "cross_entropy")


def check_loss(golden, name, loss):
    model, arrays, samples, adapter, shape = golden
    sums = add(model.module, model.params, adapter, *pack(shape, samples["s1"]), loss)
    np.testing.assert_allclose(sums.loss, arrays[f"{name}/loss"], rtol=1e-4)
    check_gradient(sums.gradients, arrays, name)


@one_family
def test_a_writer_that_stays_has_no_gradient_and_changes_no_other(golden):
    model, _, samples, adapter, shape = golden
    changes = low_rank.init(model.config, jax.random.key(0), 2, ("q", "v"))
    adapter = adapter._replace(writer=jax.tree.map(lambda x: x + 0.05, changes))
    given = model.module, model.params, adapter, *pack(shape, samples["s1"])
    learned, fixed = add(*given), add(*given, learn_writer=False)
    assert all(x.any() for x in jax.tree.leaves(learned.gradients.writer))
    assert not any(x.any() for x in jax.tree.leaves(fixed.gradients.writer))
    np.testing.assert_allclose(
        fixed.gradients.header, learned.gradients.header, rtol=1e-4, atol=1e-7
    )


@one_family
def test_both_ways_is_the_mean_of_forward_and_reverse(golden):
    model, _, samples, adapter, shape = golden
    given = model.module, model.params, adapter, *pack(shape, samples["s1"])
    forward, reverse, both = (add(*given, x).loss for x in ("kl", "reverse_kl", "both_kl"))
    assert 0 < reverse != forward
    np.testing.assert_allclose(both, (forward + reverse) / 2, rtol=1e-5)


def test_student_equals_one_pass_with_a_block_mask(golden):
    """The published student is one masked forward; ours is packets, composed and prefilled."""
    model, arrays, samples, adapter, shape = golden
    one = jax.tree.map(lambda x: x[0], pack(shape, samples["s1"])[0])
    hidden = jax.jit(loss_lib.student_hidden, static_argnums=(0, 5))(
        model.module, model.params, adapter, None, one, 1_000
    )
    logits = model.module.bind({"params": model.params}).logits(hidden[None])[0]
    expected = arrays["kl/student_logits"]
    np.testing.assert_allclose(logits[: len(expected)], expected, atol=1e-3)


@one_family
def test_the_first_document_is_that_of_requests_and_has_no_gradient(golden):
    model, _, samples, adapter, shape = golden
    example, answer, _ = samples["s1"]
    batch, hidden = pack(shape, samples["s1"])
    given = model.module, model.params, adapter, batch, hidden
    found = jax.jit(loss_lib.student_hidden, static_argnums=(0, 5, 6))(
        *given[:3], None, jax.tree.map(lambda x: x[0], batch), 1_000, True
    )
    packets = METHODS["kv_packet"](adapter).build(model, example.preamble, example.documents)
    context, start = compose(model, packets)
    served = teacher.hidden_states(model, (context,), start, example.questions, [answer])
    np.testing.assert_allclose(found[: len(served)], served, atol=2e-4)

    every = add(*given, opening=True)
    assert all(x.any() for x in (every.gradients.header, every.gradients.trailer))
    alone = batch._replace(
        document_lengths=batch.document_lengths * (np.arange(shape.documents) < 1)
    )
    assert not any(
        x.any() for x in jax.tree.leaves(add(*given[:3], alone, hidden, opening=True).gradients)
    )
    some = batch._replace(order=np.roll(batch.order, -1, axis=1))  # the first comes last
    np.testing.assert_allclose(
        add(*given[:3], some, hidden, learning=1, opening=True).loss, every.loss, rtol=1e-5
    )


def test_batch_sums_examples_of_different_sizes(golden):
    model, arrays, samples, adapter, shape = golden
    sums = add(model.module, model.params, adapter, *pack(shape, *samples.values()))
    np.testing.assert_allclose(sums.loss, arrays["batched2/loss_sum"], rtol=1e-4)
    check_gradient(sums.gradients, arrays, "batched2")


def published_config(rate: float = 0.01):
    """Adam and the loss as the reference has them."""
    config = train_config.get_config()
    config.reduction = "sum"
    config.optimizer.update(
        {
            "learning_rate": rate,
            "writer_learning_rate": rate,
            "warmup_steps": 0,
            "b1": 0.9,
            "b2": 0.999,
        }
    )
    return config


OPTIMIZER = setup.make_optimizer(published_config())
update = jax.jit(functools.partial(step_lib.update, OPTIMIZER), static_argnums=(0, 1))


def run_steps(model, adapter, config, steps, finish_from=None):
    """The trainer's own steps, each of one or more microbatches; losses and adapters."""
    state, losses, adapters = step_lib.init_state(adapter, OPTIMIZER), [], []
    for i, microbatches in enumerate(steps):
        sums = step_lib.zero_sums(adapter)
        for batch, hidden in microbatches:
            one = add(model.module, model.params, state.adapter, batch, hidden)
            sums = jax.tree.map(jnp.add, sums, one)
            losses.append(float(one.loss))
        left = setup.steps_left(config, i, finish_from)
        state, _ = update(config.reduction, 0.9, state, sums, setup.rates(config, i, left))
        adapters.append(state.adapter)
    return losses, adapters


def test_five_adamw_steps(golden):
    model, arrays, samples, adapter, shape = golden
    batch = pack(shape, samples["s1"])
    losses, adapters = run_steps(model, adapter, published_config(), [[batch]] * 5)
    np.testing.assert_allclose(losses, arrays["kl/losses_before_each_step"], rtol=1e-3)
    for i, after in enumerate(adapters):
        for part in ("header", "trailer"):
            expected = arrays[f"kl/{part}_after_each_step"][i]
            np.testing.assert_allclose(getattr(after, part), expected, atol=5e-4)


def test_rates_that_finish_are_the_published_linear_decay(golden):
    model, arrays, samples, adapter, shape = golden
    batch, rates = pack(shape, samples["s1"]), arrays["linear_decay/lrs"]
    config = published_config(float(rates[0]))
    config.finish = len(rates)
    losses, adapters = run_steps(model, adapter, config, [[batch]] * len(rates), finish_from=0)
    np.testing.assert_allclose(losses, arrays["linear_decay/losses_before_each_step"], rtol=1e-3)
    expected = arrays["linear_decay/header_after_each_step"]
    for after, header in zip(adapters, expected, strict=True):
        np.testing.assert_allclose(after.header, header, atol=5e-4)


def test_a_step_of_two_microbatches(golden):
    model, arrays, samples, adapter, shape = golden
    step = [pack(shape, samples[s]) for s in ("s1", "s2")]
    losses, (after,) = run_steps(model, adapter, published_config(), [step])
    np.testing.assert_allclose(losses, arrays["accum2/losses"], rtol=1e-4)
    for part in ("header", "trailer"):
        expected = arrays[f"accum2/{part}_after_1_step"]
        np.testing.assert_allclose(getattr(after, part), expected, atol=5e-4)


@one_family
def test_what_is_not_finite_leaves_the_state_as_it_was(golden):
    model, _, samples, adapter, shape = golden
    batch, hidden = pack(shape, samples["s1"])
    hidden[0, 0, 0, 0] = np.nan
    state = step_lib.init_state(adapter, OPTIMIZER)
    sums = add(model.module, model.params, adapter, batch, hidden)
    rates = setup.rates(published_config(), 0)
    after, metrics = update("sum", 0.9, state, sums, rates)
    assert not np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, after, state)


@one_family
def test_reductions_divide_the_sum(golden):
    model, _, samples, adapter, shape = golden
    sums = add(model.module, model.params, adapter, *pack(shape, *samples.values()))
    state, rates = step_lib.init_state(adapter, OPTIMIZER), setup.rates(published_config(), 0)
    loss = {r: update(r, 0.9, state, sums, rates)[1]["loss"] for r in loss_lib.REDUCTIONS}
    tokens = sum(len(s.answer) for s in samples.values())
    np.testing.assert_allclose(loss["mean_tokens"] * tokens, loss["sum"], rtol=1e-5)
    np.testing.assert_allclose(loss["mean_questions"] * 2, loss["sum"], rtol=1e-5)


@one_family
def test_a_batch_without_any_preamble(golden):
    """Its array has no columns, or only padding."""
    model, _, samples, adapter, shape = golden
    bare = samples["s1"]._replace(example=dataclasses.replace(samples["s1"].example, preamble=[]))
    sums, padded = (
        add(model.module, model.params, adapter, *pack(s, bare))
        for s in (dataclasses.replace(shape, preamble=0), shape)
    )
    np.testing.assert_allclose(sums.loss, padded.loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), sums.gradients, padded.gradients
    )


def test_a_writer_learns_as_published(golden):
    """SemPIC: low-rank changes while packets are built."""
    check_writer(golden, "lora")


@one_family
def test_a_writer_and_soft_tokens_learn_as_published(golden):
    check_writer(golden, "joint")


def check_writer(golden, kind: str):
    model, _, samples, tokens, shape = golden
    arrays = np.load(GOLDEN / f"sempic_train_{pathlib.Path(model.name).name}.npz")
    adapter = tokens if kind == "joint" else adapter_lib.empty(model.config.dim)
    adapter = adapter._replace(writer=published_writer(arrays, model.config))
    batch = pack(shape, samples["s1"])
    sums = add(model.module, model.params, adapter, *batch)
    np.testing.assert_allclose(sums.loss, arrays[f"{kind}/loss"], rtol=1e-4)
    check_gradient(sums.gradients, arrays, kind)
    losses, adapters = run_steps(model, adapter, published_config(), [[batch]] * 3)
    np.testing.assert_allclose(losses, arrays[f"{kind}_steps/losses"][:3], rtol=1e-3)
    for i in (1, 3):
        for matrix, factors in adapters[i - 1].writer.items():
            for letter, factor in zip("AB", factors, strict=True):
                expected = arrays[f"{kind}_steps_after_{i}/lora_{matrix}_{letter}"]
                np.testing.assert_allclose(as_published(factor, letter), expected, atol=5e-4)


@one_family
def test_gradients_through_some_documents_are_theirs_alone(golden):
    """The loss is that of all; the others' share of the gradient is left out."""
    model, _, samples, adapter, shape = golden
    batch, hidden = pack(shape, samples["s1"])
    P = batch.documents.shape[1]

    def gradient(order, learning=1_000):
        ordered = batch._replace(order=np.array([order], np.int32))
        return add(model.module, model.params, adapter, ordered, hidden, learning=learning)

    every = gradient(range(P))
    parts = [gradient([p, *(i for i in range(P) if i != p)], 1) for p in range(P)]
    for part in parts:
        np.testing.assert_allclose(part.loss, every.loss, rtol=1e-5)
    total = sum(np.asarray(p.gradients.header) for p in parts)
    scale = np.abs(every.gradients.header).max()
    np.testing.assert_allclose(total, every.gradients.header, atol=1e-4 * scale)


@one_family
def test_absent_documents_change_nothing(golden):
    model, _, samples, adapter, shape = golden
    batch, hidden = pack(shape, samples["s1"])
    absent = np.zeros_like(batch.documents[:, :1])
    more = batch._replace(
        documents=np.concatenate([batch.documents, absent], axis=1),
        document_lengths=np.pad(batch.document_lengths, [(0, 0), (0, 1)]),
        order=np.arange(batch.order.shape[1] + 1, dtype=np.int32)[None],
    )
    sums, same = (add(model.module, model.params, adapter, b, hidden) for b in (batch, more))
    np.testing.assert_allclose(sums.loss, same.loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), sums.gradients, same.gradients
    )


@one_family
def test_scores_of_questions_add_up_to_the_loss(golden):
    model, _, samples, adapter, shape = golden
    batch, hidden = pack(shape, *samples.values())
    score = jax.jit(step_lib.score_microbatch, static_argnums=0)
    scores = score(model.module, model.params, adapter, None, batch, hidden)
    sums = add(model.module, model.params, adapter, batch, hidden)
    np.testing.assert_allclose(scores["kl"].sum(), sums.metrics["kl"], rtol=1e-5)
    assert scores["tokens"].sum() == sums.metrics["tokens"]
    agree = sums.metrics["agree"]
    assert bool(scores["same"].all()) == bool(agree == sums.metrics["tokens"])
    sure = np.asarray(scores["probabilities"])
    assert np.count_nonzero(sure) == scores["tokens"].sum() and (sure < 1).all()
    total = -np.log(sure[sure > 0]).sum()
    np.testing.assert_allclose(total, sums.metrics["cross_entropy"], rtol=1e-5)
