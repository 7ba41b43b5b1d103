"""Distillation against the published trainer: loss, gradients, optimiser steps, all families."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import train as train_config
from kvpacket_jax import data, teacher
from kvpacket_jax.data import EncodedExample
from kvpacket_jax.data.mixture import mixture
from kvpacket_jax.measure.memory import memory_analysis
from kvpacket_jax.methods.base import store_preamble
from kvpacket_jax.methods.full_recompute import read_documents
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.train import loss as loss_lib
from kvpacket_jax.train import setup
from models import CONFIGS, tokenizer
from models.transformer import Transformer, init_params
from tests.support.golden import FAMILIES, GOLDEN

# The goldens' own noise is 1e-4 of the largest gradient; a wrong mask is off by more than 1.
RELATIVE = 2e-4


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request, tiny):
    arrays = np.load(GOLDEN / f"train_{request.param}.npz")
    model = tiny(request.param, scan_layers=True)
    lessons = {s: make_lesson(model, arrays, s) for s in ("s1", "s2")}
    adapter = Adapter(jnp.asarray(arrays["header0"]), jnp.asarray(arrays["trailer0"]))
    return model, arrays, lessons, adapter


def pack(lessons, adapter: Adapter, reduction: str = "sum") -> loss_lib.Batch:
    sizes, counts = loss_lib.sizes(lessons, adapter.num_tokens), loss_lib.counts(lessons)
    return loss_lib.pack(lessons, sizes, counts[reduction])


def make_lesson(model, arrays, sample: str) -> teacher.Targets:
    """A published sample; the teacher's states are ours, and give the published logits."""
    documents = [
        arrays[f"{sample}/doc{i}_ids"].tolist()
        for i in range(10)
        if f"{sample}/doc{i}_ids" in arrays
    ]
    example = EncodedExample(
        arrays[f"{sample}/preamble_ids"].tolist(),
        documents,
        [arrays[f"{sample}/query_ids"].tolist()],
    )
    answers = [arrays[f"{sample}/teacher_tokens"].tolist()]
    context, start = read_documents(model, store_preamble(model, example.preamble), documents)
    hidden = teacher.hidden_states(model, context, start, example.questions, answers)
    logits = model.module.apply({"params": model.params}, hidden[None], method="logits")[0]
    np.testing.assert_allclose(logits, arrays[f"{sample}/teacher_logits"], atol=1e-3)
    return teacher.Targets(example, answers, hidden)


@functools.partial(jax.jit, static_argnames=("module", "loss"))
def loss_and_gradient(module, params, adapter, batch, loss):
    objective = lambda a: loss_lib.loss_and_metrics(module, params, a, batch, loss)  # noqa: E731
    (value, _), gradient = jax.value_and_grad(objective, has_aux=True)(adapter)
    return value, gradient


def check_gradient(gradient, arrays, name: str):
    for found, part in zip(gradient, ("header", "trailer"), strict=True):
        expected = arrays[f"{name}/grad_{part}"]
        np.testing.assert_allclose(found, expected, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize(("name", "loss"), [("kl", "kl"), ("ce", "cross_entropy")])
def test_loss_and_gradient_equal_published(golden, name, loss):
    model, arrays, lessons, adapter = golden
    batch = pack([lessons["s1"]], adapter)
    value, gradient = loss_and_gradient(model.module, model.params, adapter, batch, loss)
    np.testing.assert_allclose(value, arrays[f"{name}/loss"], rtol=1e-4)
    check_gradient(gradient, arrays, name)


def test_student_equals_one_pass_with_a_block_mask(golden):
    """The published student is one masked forward; ours is packets, composed and prefilled."""
    model, arrays, lessons, adapter = golden
    batch = pack([lessons["s1"]], adapter)
    one = jax.tree.map(lambda x: x[0], batch)
    hidden = jax.jit(loss_lib.student_hidden, static_argnums=0)(
        model.module, model.params, adapter, one
    )
    logits = model.module.apply({"params": model.params}, hidden[None], method="logits")[0]
    expected = arrays["kl/student_logits"]
    np.testing.assert_allclose(logits[: len(expected)], expected, atol=1e-3)


def test_batch_sums_examples_of_different_sizes(golden):
    model, arrays, lessons, adapter = golden
    batch = pack(list(lessons.values()), adapter)
    value, gradient = loss_and_gradient(model.module, model.params, adapter, batch, "kl")
    np.testing.assert_allclose(value, arrays["batched2/loss_sum"], rtol=1e-4)
    check_gradient(gradient, arrays, "batched2")


def run_steps(model, adapter, optimizer, batches):
    """train_step's updates, with the gradients' program shared by all optimizers."""
    optimizer_state, losses, states = optimizer.init(adapter), [], []
    for batch in batches:
        loss, gradient = loss_and_gradient(model.module, model.params, adapter, batch, "kl")
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, adapter)
        adapter = optax.apply_updates(adapter, updates)
        losses.append(float(loss))
        states.append(adapter)
    return losses, states


def test_train_step_is_that_gradient_and_update(golden):
    model, _, lessons, adapter = golden
    batch = pack([lessons["s1"]], adapter)
    optimizer = optax.adamw(0.01, weight_decay=0.0)
    step = jax.jit(functools.partial(loss_lib.train_step, model.module, optimizer, "kl"))
    state = loss_lib.init_state(adapter, optimizer)
    after, metrics = step(model.params, state, batch)
    losses, states = run_steps(model, adapter, optimizer, [batch])
    np.testing.assert_allclose(metrics["loss"], losses[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.adapter, states[0])
    assert after.step == 1

    batch.teacher[0, 0, 0] = np.nan  # a loss that is not finite leaves the state as it was
    same, metrics = step(model.params, after, batch)
    assert not np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, same, after)


def test_five_adamw_steps(golden):
    model, arrays, lessons, adapter = golden
    batch = pack([lessons["s1"]], adapter)
    optimizer = optax.adamw(0.01, weight_decay=0.0)
    losses, states = run_steps(model, adapter, optimizer, [batch] * 5)
    np.testing.assert_allclose(losses, arrays["kl/losses_before_each_step"], rtol=1e-3)
    for i, state in enumerate(states):
        np.testing.assert_allclose(state.header, arrays["kl/header_after_each_step"][i], atol=5e-4)
        np.testing.assert_allclose(
            state.trailer, arrays["kl/trailer_after_each_step"][i], atol=5e-4
        )


def published_config():
    """AdamW as the reference has it."""
    config = train_config.get_config()
    config.optimizer.update({"warmup_steps": 0, "b1": 0.9, "b2": 0.999})
    return config


def test_linear_decay(golden):
    model, arrays, lessons, adapter = golden
    batch = pack([lessons["s1"]], adapter)
    rates = arrays["linear_decay/lrs"]
    config = published_config()
    config.optimizer.update({"learning_rate": float(rates[0]), "decay": "linear", "final": 0.0})
    optimizer = setup.make_optimizer(config, len(rates))
    losses, states = run_steps(model, adapter, optimizer, [batch] * len(rates))
    np.testing.assert_allclose(losses, arrays["linear_decay/losses_before_each_step"], rtol=1e-3)
    expected = arrays["linear_decay/header_after_each_step"]
    for state, header in zip(states, expected, strict=True):
        np.testing.assert_allclose(state.header, header, atol=5e-4)


def test_accumulation_over_two_examples(golden):
    model, arrays, lessons, adapter = golden
    config = published_config()
    config.accumulate = 2
    config.optimizer.update({"learning_rate": 0.01, "decay": "constant"})
    batches = [pack([lessons[s]], adapter) for s in ("s1", "s2")]
    losses, states = run_steps(model, adapter, setup.make_optimizer(config, 2), batches)
    np.testing.assert_allclose(losses, arrays["accum2/losses"], rtol=1e-4)
    np.testing.assert_array_equal(states[0].header, adapter.header)
    np.testing.assert_allclose(states[1].header, arrays["accum2/header_after_1_step"], atol=5e-4)
    np.testing.assert_allclose(states[1].trailer, arrays["accum2/trailer_after_1_step"], atol=5e-4)


def test_reductions(golden):
    model, _, lessons, adapter = golden
    value = {}
    for reduction in loss_lib.REDUCTIONS:
        batch = pack([lessons["s1"]], adapter, reduction)
        value[reduction] = loss_and_gradient(model.module, model.params, adapter, batch, "kl")[0]
    tokens = len(lessons["s1"].answers[0])
    np.testing.assert_allclose(value["mean_tokens"] * tokens, value["sum"], rtol=1e-5)
    np.testing.assert_allclose(value["mean_questions"], value["sum"], rtol=1e-5)  # one question


def test_absent_documents_change_nothing(golden):
    model, _, lessons, adapter = golden
    if model.config.family != "llama":
        pytest.skip("nothing in it depends on the family")
    batch = pack([lessons["s1"]], adapter)
    absent = np.zeros_like(batch.documents[:, :1])
    more = batch._replace(
        documents=np.concatenate([batch.documents, absent], axis=1),
        document_lengths=np.pad(batch.document_lengths, [(0, 0), (0, 1)]),
    )
    run = functools.partial(loss_and_gradient, model.module, model.params, adapter, loss="kl")
    (value, gradient), (more_value, more_gradient) = run(batch), run(more)
    np.testing.assert_allclose(value, more_value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradient, more_gradient)


def test_remat_saves_memory_where_layers_are_scanned():
    """XLA for CPUs undoes it in unrolled layers; here the compiled step must show it."""
    config = dataclasses.replace(CONFIGS["smollm2-135m"], num_layers=8, scan_layers=True)
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    batch = loss_lib.Batch(
        preamble=shape((1, 16)),
        preamble_length=shape((1,)),
        documents=shape((1, 4, 240)),
        document_lengths=shape((1, 4)),
        rows=shape((1, 4, 48)),
        row_lengths=shape((1, 4)),
        picks=shape((1, 64)),
        tokens=shape((1, 64)),
        teacher=jax.ShapeDtypeStruct((1, 64, config.dim), jnp.float32),
        weights=jax.ShapeDtypeStruct((1, 64), jnp.float32),
    )
    adapter = Adapter(*(jax.ShapeDtypeStruct((8, config.dim), jnp.float32),) * 2)

    def temporaries(remat: bool) -> int:
        module = Transformer(dataclasses.replace(config, remat=remat))
        params = jax.eval_shape(functools.partial(init_params, module.config), jax.random.key(0))

        def step(params, adapter, batch):
            objective = lambda a: loss_lib.loss_and_metrics(module, params, a, batch)[0]  # noqa: E731
            return jax.grad(objective)(adapter)

        return memory_analysis(step, params, adapter, batch).temporaries

    assert temporaries(True) < 0.5 * temporaries(False)


@pytest.mark.model
@pytest.mark.parametrize(("arg", "filled"), [(None, 0.74), ("more", 0.75)])
def test_padding_of_the_shipped_mixture_is_about_a_quarter(demo_folder, arg, filled):
    config = train_config.get_config(arg)
    read = tokenizer.load(demo_folder(config.model))
    entries = setup.entries(config)
    examples = mixture(
        list(setup.sources(config, "train").values()), [e.weight for _, e in entries], config.seed
    )
    adapter_tokens, found = config.header + config.trailer, []
    for i in range(0, config.num_steps, 2):
        example = data.encode_example(read, data.TEMPLATES[config.template], examples[i])
        answers = [[0] * 7 for _ in example.questions]  # about what the teacher gives
        targets = teacher.Targets(example, answers, np.zeros((7 * len(answers), 1), np.float32))
        sizes = loss_lib.sizes([targets], adapter_tokens)
        real = loss_lib.tokens([targets], adapter_tokens)
        found.append((real, loss_lib.computed(sizes, adapter_tokens)))
    real, computed = np.sum(found, axis=0)
    assert real > filled * computed
