"""Training and answering on many devices are what they are on one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from configs import train as train_config
from kvpacket_jax.compress import make
from kvpacket_jax.data import EncodedExample
from kvpacket_jax.measure.request import Entry, first_token
from kvpacket_jax.methods import METHODS, Request, settings
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.compose import compose
from kvpacket_jax.packets.generate import generate
from kvpacket_jax.packets.packet import build_packets, provenance_of
from kvpacket_jax.packets.prefill import prefill
from kvpacket_jax.storage import packet_file, store
from kvpacket_jax.train import loop, setup
from kvpacket_jax.train import step as step_lib
from kvpacket_jax.train.checkpoint import Checkpoints
from kvpacket_jax.train.loss import Batch, pack
from kvpacket_jax.train.shapes import Fitted, Shape
from models import CONFIGS, low_rank, sharding
from models.sources import random_models
from models.transformer import Transformer
from tests.support.golden import FAMILIES, GOLDEN, load_case

EXAMPLES, STEPS = 8, 10
TOLERANCE = 1e-4
SMALL = dataclasses.replace(
    CONFIGS["llama-3.1-8b"], dim=64, num_layers=2, vocab_size=256, head_dim=8, mlp_dim=96
)
# 16 query heads of 4 key/value heads; 6 of 2, whose groups of 3 do not divide: copies. Those have
# norms of queries and keys, and biases.
SHAPES = {
    "16 heads of 4": dataclasses.replace(SMALL, num_heads=16, num_kv_heads=4),
    "6 heads of 2": dataclasses.replace(
        SMALL, num_heads=6, num_kv_heads=2, qk_norm=True, qkv_bias=True
    ),
}


def load(name: str, mesh: str | None) -> models.LanguageModel:
    if name in FAMILIES:
        return models.load(str(GOLDEN / name), "float32", mesh=mesh, scan_layers=True, remat=True)
    made = sharding.make_mesh(mesh, SHAPES[name]) if mesh else None
    config = dataclasses.replace(SHAPES[name], mesh=made, scan_layers=True, remat=True)
    draw = np.random.default_rng(0).normal  # norms and biases differ, too
    params = jax.tree.map(
        lambda x: x + 0.02 * draw(size=x.shape).astype(x.dtype),
        random_models.params(config, jnp.float32),
    )
    return models.LanguageModel(name, config, Transformer(config), params, None, name)


def microbatch(model: models.LanguageModel, examples: int = EXAMPLES) -> tuple[Batch, np.ndarray]:
    """Different lengths and numbers of documents; the teacher's states `[E, Q, N, D]` are drawn."""
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(0, model.config.vocab_size, n).tolist()  # noqa: E731
    shape = Shape(5, documents=3, tokens=18, questions=2, row=9, new_tokens=4, answers=8)
    fitted, answers = [], []
    for i in range(examples):
        documents = [draw(8 + 3 * (i + p) % 11) for p in range(2 + i % 2)]
        encoded = EncodedExample(draw(5), documents, [draw(6), draw(4)])
        fitted.append(Fitted(f"{i}", (), encoded))
        answers.append([draw(2 + i % 3), draw(3)])
    batch = pack(fitted, answers, [[1.0, 0.5]] * examples, shape)
    hidden = rng.normal(size=(examples, shape.questions, shape.new_tokens, model.config.dim))
    return batch, hidden.astype(np.float32)


def initial_adapter(config) -> Adapter:
    key = jax.random.key(1)
    writer = low_rank.init(config, key, 2, ("q", "k", "v", "o", "down"))
    return Adapter(*0.1 * jax.random.normal(key, (2, 4, config.dim)), writer=writer)


def training_config():
    config = train_config.get_config()
    config.optimizer.update(
        {"learning_rate": 1e-2, "writer_learning_rate": 1e-2, "warmup_steps": 0}
    )
    return config


@functools.cache
def trained(name: str, mesh: str | None):
    """The losses, the first gradient and the state of ten steps, of two microbatches each."""
    model, config = load(name, mesh), training_config()
    optimizer = setup.make_optimizer(config)
    state = step_lib.init_state(initial_adapter(model.config), optimizer)
    batch, hidden = sharding.put_batch(model.config.mesh, microbatch(model))
    if model.config.mesh:
        state = jax.device_put(state, sharding.replicated(model.config.mesh))
    add = loop.jit_microbatch(model, config, learning=2)
    update, losses, first = loop.jit_update(model, optimizer, config), [], None
    for i in range(STEPS):
        sums = step_lib.zero_sums(state.adapter)
        for _ in range(2):
            sums = add(model.params, state.adapter, None, sums, batch, hidden)
        first = first or jax.device_get(sums.gradients)
        state, metrics = update(state, sums, setup.rates(config, i))
        losses.append(float(metrics["loss"]))
    return losses, first, jax.device_get(state)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("6 heads of 2", "data:2,model:4"),
        *(
            pytest.param(family, mesh, marks=pytest.mark.slow)
            for mesh in ("data:4,model:2", "data:8")
            for family in FAMILIES
        ),
        pytest.param("16 heads of 4", "data:2,model:4", marks=pytest.mark.slow),
    ],
)
def test_ten_steps_are_those_of_one_device(name, mesh):
    losses, first, state = trained(name, mesh)
    expected_losses, expected_first, expected = trained(name, None)
    np.testing.assert_allclose(losses, expected_losses, rtol=TOLERANCE)

    def check_gradient(gradient, known):
        np.testing.assert_allclose(gradient, known, atol=TOLERANCE * np.abs(known).max())

    jax.tree.map(check_gradient, first, expected_first)
    close = functools.partial(np.testing.assert_allclose, atol=TOLERANCE)
    for part in ("adapter", "mean"):
        jax.tree.map(close, getattr(state, part), getattr(expected, part))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow  # the next one's have answers beside them
def test_scores_are_those_of_one_device():
    def scores(mesh: str | None):
        model = load("tiny_qwen2", mesh)
        adapter = initial_adapter(model.config)
        batch, hidden = sharding.put_batch(model.config.mesh, microbatch(model))
        score = jax.jit(functools.partial(step_lib.score_microbatch, model.module))
        return sharding.fetch(score(model.params, adapter, None, batch, hidden))

    close = functools.partial(np.testing.assert_allclose, rtol=TOLERANCE, atol=TOLERANCE)
    jax.tree.map(close, scores("data:4,model:2"), scores(None))


def test_scores_with_answers_are_those_of_one_device():
    """Nothing is decoded where the answer is the teacher's: here that is where it is padding."""

    def compared(mesh: str | None):
        model = load("tiny_qwen2", mesh)
        adapter = initial_adapter(model.config)
        batch, hidden = sharding.put_batch(model.config.mesh, microbatch(model))
        compare = jax.jit(
            functools.partial(step_lib.compare_microbatch, model.module),
            static_argnames="new_tokens",
        )
        rows = batch.rows, batch.row_lengths, np.array([-1], np.int32)
        return sharding.fetch(
            compare(model.params, adapter, None, batch, hidden, *rows, new_tokens=4)
        )

    (scores, (tokens, lengths, sure)), expected = compared("data:4,model:2"), compared(None)
    close = functools.partial(np.testing.assert_allclose, rtol=TOLERANCE, atol=TOLERANCE)
    jax.tree.map(close, scores, expected[0])
    np.testing.assert_array_equal(lengths, expected[1][1])
    skipped = scores["same"] | (scores["tokens"] == 0)
    np.testing.assert_array_equal(lengths, np.where(skipped, 0, 4))
    within = np.arange(tokens.shape[-1]) < lengths[..., None]
    np.testing.assert_array_equal(tokens[within], expected[1][0][within])
    close(sure[within], expected[1][2][within])


def test_a_checkpoint_of_eight_devices_loads_on_one(tmp_path):
    optimizer = setup.make_optimizer(training_config())
    state = step_lib.init_state(initial_adapter(SHAPES["6 heads of 2"]), optimizer)
    mesh = sharding.make_mesh("data:2,model:4", SMALL)
    many = jax.device_put(state._replace(step=jnp.int32(7)), sharding.replicated(mesh))
    described = {"model": "it", "model_name": "it", "config": {}, "examples": "them"}
    writer = Checkpoints(tmp_path / "checkpoints")
    writer.save(7, many, described, {})
    writer.close()
    loaded = Checkpoints(tmp_path / "checkpoints").restore(state, described)
    jax.tree.map(np.testing.assert_array_equal, loaded, many)
    assert loaded.adapter.header.sharding.device_set == state.adapter.header.sharding.device_set


@pytest.fixture(scope="module")
def requests(tiny):
    """One golden request on one device and on a mesh, with an adapter."""
    one = tiny("tiny_llama31")
    many = models.load(str(GOLDEN / "tiny_llama31"), "float32", mesh="data:2,model:4")
    case = load_case("llama31_A", one)
    request = Request(case.preamble, case.documents, case.query)
    tokens = np.random.default_rng(0).normal(0, 0.1, (2, 4, one.config.dim)).astype(np.float32)
    return one, many, request, Adapter(*tokens)


# Those that compute in ways of their own; the others are these with less.
QUICK = (
    "kv_packet:compress=zeromerge",
    "cache_blend",
    "a3",
    "infoflow",
    "sam_kv",
    "sink",
    "single_cache",
)


@pytest.mark.parametrize(
    "name",
    [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in METHODS if n not in QUICK)],
)
def test_every_method_answers_as_on_one_device(requests, name):
    one, many, request, adapter = requests
    method = settings.make(name, adapter)[1]

    def run(model):
        entry = Entry(method, method.store(model, request.preamble, request.documents))
        return np.asarray(first_token(model, entry, request).logits)

    np.testing.assert_allclose(run(many), run(one), atol=TOLERANCE)


def test_packets_and_answers_are_those_of_one_device(requests):
    one, many, request, adapter = requests

    def run(model):
        packets = build_packets(model, adapter, request.documents)
        method = METHODS["kv_packet"](adapter)
        stored = method.store(model, request.preamble, request.documents)
        prepared = method.prepare(model, stored, request)
        ready = prefill(model, prepared.context, [request.query] * 3, prepared.query_start, 12)
        return packets, generate(model, prepared.context, ready, 12, stop_ids=[])

    (packets, answers), (expected, expected_answers) = run(many), run(one)
    assert answers == expected_answers
    for packet, other in zip(packets, expected, strict=True):
        close = functools.partial(np.testing.assert_allclose, atol=TOLERANCE)
        jax.tree.map(close, packet.cache.k, other.cache.k)
    assert heads_of_a_device(packets[0]) == 1  # of two key/value heads


def heads_of_a_device(packet) -> int:
    return packet.cache.k[0].addressable_shards[0].data.shape[-2]


@pytest.mark.parametrize("compressor", [None, make("zeromerge")])
def test_packets_are_stored_whole_and_loaded_sharded(requests, tmp_path, compressor):
    one, many, request, adapter = requests
    provenance = provenance_of(many, adapter, compressor=compressor)
    assert provenance == provenance_of(one, adapter, compressor=compressor)
    packets = build_packets(many, adapter, request.documents, compressor=compressor)
    with store.writing(tmp_path) as writer:
        wanted = [(writer.place(writer.prepare(packet)).packet, provenance) for packet in packets]
    whole, sharded = (packet_file.load(tmp_path, wanted, model) for model in (one, many))
    assert heads_of_a_device(sharded[0]) == 1
    for made, alone, again in zip(packets, whole, sharded, strict=True):
        for found in (alone, again):  # what stands behind the slots is padding
            keys, expected = (np.asarray(p.cache.k)[..., : made.slots, :, :] for p in (found, made))
            np.testing.assert_array_equal(keys, expected)
    contexts = [compose(model, loaded)[0] for model, loaded in ((one, whole), (many, sharded))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), *contexts)
