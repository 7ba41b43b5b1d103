"""Training and answering on many devices are what they are on one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from kvpacket_jax import teacher
from kvpacket_jax.data import EncodedExample
from kvpacket_jax.measure.request import Entry, first_token
from kvpacket_jax.methods import METHODS, Request, settings
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.compose import compose
from kvpacket_jax.packets.generate import generate
from kvpacket_jax.packets.packet import build_packets, provenance_of
from kvpacket_jax.packets.prefill import prefill
from kvpacket_jax.serve import packet_file, store
from kvpacket_jax.train import loop
from kvpacket_jax.train import loss as loss_lib
from kvpacket_jax.train.checkpoint import Checkpoints
from models import CONFIGS, sharding
from models.sources import random_models
from models.transformer import Transformer
from tests.support.golden import FAMILIES, GOLDEN, load_case

EXAMPLES, STEPS = 8, 10
TOLERANCE = 1e-4
SMALL = dataclasses.replace(
    CONFIGS["llama-3.1-8b"], dim=64, num_layers=2, vocab_size=256, head_dim=8, mlp_dim=96
)
# 16 query heads of 4 key/value heads; 6 of 2, whose groups of 3 do not divide: copies.
SHAPES = {
    "16 heads of 4": dataclasses.replace(SMALL, num_heads=16, num_kv_heads=4),
    "6 heads of 2": dataclasses.replace(SMALL, num_heads=6, num_kv_heads=2),
}


def load(name: str, mesh: str | None) -> models.LanguageModel:
    if name in FAMILIES:
        return models.load(str(GOLDEN / name), "float32", mesh=mesh, scan_layers=True, remat=True)
    made = sharding.make_mesh(mesh, SHAPES[name]) if mesh else None
    config = dataclasses.replace(SHAPES[name], mesh=made, scan_layers=True, remat=True)
    params = random_models.params(config, jnp.float32)
    return models.LanguageModel(name, config, Transformer(config), params, None, name)


def lessons(model: models.LanguageModel) -> list[teacher.Targets]:
    """Different lengths and numbers of documents; the teacher's states are drawn."""
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(0, model.config.vocab_size, n).tolist()  # noqa: E731
    made = []
    for i in range(EXAMPLES):
        example = EncodedExample(
            draw(5), [draw(8 + 3 * (i + p) % 11) for p in range(2 + i % 2)], [draw(6), draw(4)]
        )
        answers = [draw(2 + i % 3), draw(3)]
        states = rng.normal(size=(sum(map(len, answers)), model.config.dim))
        made.append(teacher.Targets(example, answers, states.astype(np.float32)))
    return made


@functools.cache
def trained(name: str, mesh: str | None):
    """The losses, the first gradient and the adapter of ten steps."""
    model = load(name, mesh)
    key = jax.random.key(1)
    adapter = Adapter(*0.1 * jax.random.normal(key, (2, 4, model.config.dim)))
    taught = lessons(model)
    sizes = loss_lib.sizes(taught, adapter.num_tokens)
    batch = loss_lib.pack(taught, sizes, loss_lib.counts(taught)["mean_questions"])
    optimizer = optax.adamw(1e-2, weight_decay=0.0)
    step = loop.jit_step(model, optimizer, "kl")
    state, losses = loss_lib.init_state(adapter, optimizer), []
    if model.config.mesh:
        whole = sharding.replicated(model.config.mesh)
        state = jax.device_put(state, whole)
        batch = jax.device_put(batch, jax.NamedSharding(model.config.mesh, jax.P(sharding.DATA)))
    first = None
    for _ in range(STEPS):
        state, metrics = step(model.params, state, batch)
        losses.append(float(metrics["loss"]))
        # AdamW's first moment after one step is a tenth of the gradient.
        first = first or jax.device_get(optax.tree.get(state.optimizer, "mu"))
    return losses, first, jax.device_get(state.adapter)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        *((family, mesh) for family in FAMILIES for mesh in ("data:4,model:2", "data:8")),
        ("16 heads of 4", "data:2,model:4"),
        ("6 heads of 2", "data:2,model:4"),
    ],
)
def test_ten_steps_are_those_of_one_device(name, mesh):
    losses, first, adapter = trained(name, mesh)
    expected_losses, expected_first, expected = trained(name, None)
    np.testing.assert_allclose(losses, expected_losses, rtol=TOLERANCE)
    for gradient, known in zip(first, expected_first, strict=True):
        np.testing.assert_allclose(gradient, known, atol=TOLERANCE * np.abs(known).max())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), adapter, expected)
    assert losses[-1] < 0.9 * losses[0]


def test_a_copy_of_the_model_takes_one_example_at_a_time():
    """So memory does not grow with the batch."""
    model, optimizer = load("16 heads of 4", None), optax.adamw(1e-2)
    step = loop.jit_step(model, optimizer, "kl")
    adapter = Adapter(*jnp.zeros((2, 4, model.config.dim)))
    taught = lessons(model)
    sizes = loss_lib.sizes(taught, adapter.num_tokens)

    def temporaries(examples: int) -> int:
        batch = loss_lib.pack(taught[:examples], sizes, 1)
        state = loss_lib.init_state(adapter, optimizer)
        compiled = step.lower(model.params, state, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 2 * temporaries(1)


def test_a_checkpoint_of_eight_devices_loads_on_one(tmp_path):
    optimizer = optax.adamw(1e-2)
    adapter = Adapter(*np.random.default_rng(0).normal(size=(2, 4, 8)))
    state = loss_lib.init_state(adapter, optimizer)
    mesh = sharding.make_mesh("data:2,model:4", SMALL)
    many = jax.device_put(state._replace(step=jnp.int32(7)), sharding.replicated(mesh))
    described = {"model": "it", "config": {}}
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
    adapter = Adapter(*np.random.default_rng(0).normal(0, 0.1, (2, 4, one.config.dim)))
    return one, many, request, Adapter(*(x.astype(np.float32) for x in adapter))


@pytest.mark.parametrize("name", METHODS)
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


def test_packets_are_stored_whole_and_loaded_sharded(requests, tmp_path):
    one, many, request, adapter = requests
    provenance = provenance_of(many, adapter)
    assert provenance == provenance_of(one, adapter)
    packets = build_packets(many, adapter, request.documents)
    with store.writing(tmp_path) as writer:
        wanted = [(writer.packet(packet), provenance) for packet in packets]
    whole, sharded = (packet_file.load(tmp_path, wanted, model) for model in (one, many))
    assert heads_of_a_device(sharded[0]) == 1
    for made, alone, again in zip(packets, whole, sharded, strict=True):
        for found in (alone, again):  # what stands behind the length is padding
            keys, expected = (
                np.asarray(p.cache.k)[..., : made.length, :, :] for p in (found, made)
            )
            np.testing.assert_array_equal(keys, expected)
    contexts = [compose(model, loaded)[0] for model, loaded in ((one, whole), (many, sharded))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), *contexts)
