"""Plans: what a program takes of a chip, and what it sends, read from the compiler."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import train as train_config
from kvpacket_jax.plan import collectives, fit, topologies
from kvpacket_jax.plan.collectives import Traffic
from kvpacket_jax.runtime.progress import Progress
from models import low_rank, sharding
from tests.support.golden import GOLDEN


def compiled_text(fn, x: np.ndarray) -> str:
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = PartitionSpec("b")
    mapped = jax.shard_map(
        functools.partial(fn), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    x = jax.device_put(x, NamedSharding(mesh, spec))
    return jax.jit(mapped).lower(x).compile().as_text()


def test_collectives_in_nested_loops_are_counted_as_often_as_they_run():
    def body(x):  # 16 numbers on each of four devices
        def inner(x, _):
            return jax.lax.psum(x, "b") * 0.5, None

        def outer(x, _):
            return jax.lax.ppermute(jax.lax.scan(inner, x, length=3)[0], "b", [(0, 1)]), None

        x = jax.lax.scan(outer, x, length=5)[0]
        return jax.lax.all_gather(x, "a").sum(axis=0)

    found = {t.kind: t for t in collectives.traffic(compiled_text(body, np.ones(64, np.float32)))}
    size = 16 * 4
    assert found["all-reduce"] == Traffic("all-reduce", 15, 15 * 2 * size * 3 // 4)
    assert found["collective-permute"] == Traffic("collective-permute", 5, 5 * size)
    assert found["all-gather"] == Traffic("all-gather", 1, 2 * size // 2)


LINE = "  %it = f32[8]{{0}} all-reduce(%x), channel_id=1, {}, to_apply=%add"


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_2'}", 2),
        (
            "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a','b'}",
            8,
        ),
    ],
)
def test_groups_are_read_in_every_spelling_of_the_tpu_compiler(groups, devices):
    text = "\n".join(["ENTRY %main (x: f32[8]) -> f32[8] {", LINE.format(groups), "}"])
    (found,) = collectives.traffic(text)
    assert found == Traffic("all-reduce", 1, round(2 * 32 * (devices - 1) / devices))


def test_what_cannot_be_read_is_not_guessed():
    text = "\n".join(["ENTRY %main (x: f32[8]) -> f32[8] {", LINE.format("channels=all"), "}"])
    with pytest.raises(NotImplementedError, match="Which devices take part"):
        collectives.traffic(text)


def config_for(model, batch_size: int = 4):
    config = train_config.get_config()
    config.model, config.batch_size, config.dtype = str(model), batch_size, "float32"
    config.header = config.trailer = 8
    config.scan_layers = config.remat = "yes"
    return config


class Said(Progress):
    """Remembers what is said."""

    def __init__(self):
        self.texts = []

    def say(self, text):
        self.texts.append(text)


@pytest.fixture(scope="module")
def rows():
    work = fit.work("2x40", 5, 8, 8)
    config = config_for(GOLDEN / "tiny_llama31")
    said = Said()
    planned = fit.plan(config, None, "data:2,model:4", work, said)
    assert "4 copies" in said.texts[0] or "2 copies" in said.texts[0]
    return planned


def test_a_plan_says_what_each_device_holds(rows, tiny):
    step, prefill = rows
    model = tiny("tiny_llama31")
    config = dataclasses.replace(
        model.config, mesh=sharding.make_mesh("data:2,model:4", model.config)
    )
    parts = jax.tree.map(
        lambda x, s: math.prod(s.shard_shape(x.shape)) * 4,
        model.params,
        sharding.param_shardings(config, model.params),
    )
    assert step.parameters == prefill.parameters == sum(jax.tree.leaves(parts))
    writer = low_rank.init(model.config, jax.random.key(0), 16, ("q", "k", "v", "o"))
    trained = 16 * model.config.dim + sum(x.size for x in jax.tree.leaves(writer))
    state = 5 * trained * 4  # adapter, mean, Adam's two moments, gradients; and counts
    assert state <= step.state < state + 64
    # The primer's cache, one of two key/value heads on each device, is most of the inputs.
    cache = 2 * model.config.num_layers * fit.PRIMER_TOKENS * model.config.head_dim * 4
    assert cache < step.inputs < 1.5 * cache
    assert step.total == step.parameters + step.state + step.inputs + step.temporaries
    assert step.flops > 20 * prefill.flops > 0
    assert step.temporaries > prefill.temporaries > 0
    sent = {t.kind: t.count for t in step.sent}
    # Attention's and the MLP's sum of each layer: forward, again, and backward.
    assert sent["all-reduce"] >= 3 * 2 * 2 * model.config.num_layers
    assert step.links_s is None and step.least_s == max(step.compute_s, step.memory_s)


def test_too_little_memory_is_told_with_what_to_change(rows):
    step = rows[0]
    assert "Fits" in fit.verdict(step)
    small = dataclasses.replace(step, memory=step.total - 1)
    assert "DOES NOT FIT" in fit.verdict(small)
    assert "--mesh=model:N" in fit.verdict(dataclasses.replace(small, parameters=10**12))
    assert "shorter documents" in fit.verdict(dataclasses.replace(small, temporaries=10**12))


def test_what_the_compiler_refuses_is_told_with_what_to_change(rows):
    words = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (19.83G) exceeds available HBM (15.75G)."
    )
    needed = fit._refused_bytes(words)
    assert needed == int(19.83 * 2**30)
    refused = dataclasses.replace(rows[0], refusal=words, temporaries=needed, memory=2**34)
    text = fit.verdict(refused)
    assert "19.83G" in text and "DOES NOT FIT: at least" in text and "shorter documents" in text


def test_a_program_without_room_still_makes_a_row(tiny):
    class NoRoom:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room\nand a long dump")

    chip = fit.Chip("chip", 10**9, 1e12, 1e11, None)
    row = fit._row("step", NoRoom, 10**9, (placed(tiny), (), ()), 1, chip, 1)
    assert row.refusal == "RESOURCE_EXHAUSTED: no room" and row.total > row.memory


def placed(tiny):
    """The model with shardings, as a plan has it."""
    config = tiny("tiny_llama31").config
    config = dataclasses.replace(config, mesh=sharding.make_mesh("model:1", config))
    return fit.abstract_model("it", config, np.dtype("float32"))


def test_bad_input_is_refused_before_anything_is_compiled():
    work = fit.work("2x40", 5, 8, 8)
    tiny = GOLDEN / "tiny_llama31"
    with pytest.raises(ValueError, match="3 is not a multiple of 2"):
        fit.plan(config_for(tiny, batch_size=3), None, "data:2", work)
    with pytest.raises(ValueError, match="random:NAME"):
        fit.plan(config_for("owner/name"), None, None, work)
    with pytest.raises(ValueError, match="fewer or shorter documents"):
        fit.plan(config_for(tiny), None, None, fit.work("9999x9999", 5, 8, 8))
    with pytest.raises(ValueError, match="one length"):
        fit.work("2x40,50", 5, 8, 8)
    for wrong in ("v5e", "v9:2x4", "v5e:8", "2x4"):
        with pytest.raises(ValueError, match="v5e:2x4"):
            topologies.parse(wrong)


def test_a_slice_is_described_as_libtpu_knows_it():
    assert topologies.environment("v5e:2x4")["TPU_ACCELERATOR_TYPE"] == "v5litepod-8"
    assert topologies.environment("v4:2x2x2")["TPU_ACCELERATOR_TYPE"] == "v4-16"


def test_without_a_tpu_compiler_the_way_to_one_is_told(monkeypatch):
    def absent(**_):
        raise RuntimeError("no plugin")

    monkeypatch.setattr(fit, "get_topology_desc", absent)
    with pytest.raises(RuntimeError, match="make plan"):
        fit.devices("v5e:2x4")
