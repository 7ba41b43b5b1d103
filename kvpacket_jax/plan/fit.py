"""Will it fit? Programs compiled ahead of time for devices that need not be there.

Only shapes and shardings are given to the compiler; nothing runs and no weights are read. For a TPU
slice this is the TPU's own compiler (libtpu), which needs no TPU.
"""

import contextlib
import dataclasses
import functools
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import rich.table
from jax.experimental.topologies import get_topology_desc
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import models
from kvpacket_jax.measure.flops import count_flops
from kvpacket_jax.measure.machine import measure_machine
from kvpacket_jax.measure.point import document_lengths
from kvpacket_jax.packets import prefill as prefill_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.plan import collectives, topologies
from kvpacket_jax.plan.topologies import Chip
from kvpacket_jax.runtime.format import si, table
from kvpacket_jax.train import loop, setup
from kvpacket_jax.train import loss as loss_lib
from models import LanguageModel, kv_cache, sharding, transformer
from models.config import ModelConfig

# How often a training step reads the parameters for each example of a copy: forward, forward again
# (remat), backward.
PASSES = 3


class Work(NamedTuple):
    """One request or one example: how many tokens."""

    documents: int
    document: int
    preamble: int
    query: int
    answer: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One program on one chip; bytes, but for what says otherwise."""

    program: str
    parameters: int  # the teacher's own copy too, where it has one
    state: int  # adapter and optimizer
    inputs: int  # batch, or caches
    temporaries: int  # activations, gradients, results
    memory: int  # what a chip has
    flops: int  # on all chips together that share the work, padding included
    sent: tuple[collectives.Traffic, ...]
    compile_s: float
    compute_s: float  # FLOPs at the peak
    memory_s: float  # parameters read, at the bandwidth
    links_s: float | None  # what is sent, at the links' rate
    refusal: str = ""  # the compiler's words, where it found no room; the temporaries are its

    @property
    def total(self) -> int:
        return self.parameters + self.state + self.inputs + self.temporaries

    @property
    def least_s(self) -> float:
        """No step can be faster: the longest of the three."""
        return max(self.compute_s, self.memory_s, self.links_s or 0.0)


def work(documents: str, preamble: int, query: int, answer: int) -> Work:
    """Work of "8x1024" documents; ValueError for another spelling or documents of two lengths."""
    lengths = document_lengths(documents)
    if len(set(lengths)) > 1:
        raise ValueError(f"--documents={documents}: a plan is for documents of one length.")
    return Work(len(lengths), lengths[0], preamble, query, answer)


def plan(
    config: ConfigDict,
    topology: str | None,
    mesh: str | None,
    work: Work,
    step: Callable = contextlib.nullcontext,
    say: Callable = print,
) -> list[Row]:
    """Training and answering of `config.model` on a slice, or on the devices at hand.

    Raises ValueError or RuntimeError: what was found and what would do.
    """
    shape = models.shape(config.model)
    dtype = jnp.dtype("bfloat16" if config.dtype == "auto" else config.dtype)
    found, chip = devices(topology)
    placed = sharding.make_mesh(mesh or f"model:{len(found)}", shape, found)
    serving = dataclasses.replace(shape, mesh=placed)
    training_config = dataclasses.replace(serving, scan_layers=True, remat=config.remat)
    student = abstract_model(config.model, training_config, dtype)
    say(sharding.describe(student.config, student.params))
    adapter_tokens = config.header + config.trailer
    with step(f"Compiling a training step of {config.model}"):
        rows = [training(student, config, work, chip)]
    with step("Compiling the prefill over composed packets"):
        reader = abstract_model(config.model, serving, dtype)
        rows.append(answering(reader, adapter_tokens, work, chip))
    return rows


def devices(topology: str | None) -> tuple[Sequence[Any], Chip]:
    """The devices of a TPU slice, or those at hand, and what one of them can do.

    Raises RuntimeError where there is no TPU compiler.
    """
    if topology is None:
        return jax.devices(), _chip_at_hand(jax.devices()[0])
    version, _ = topologies.parse(topology)
    try:
        found = get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # jax raises what the plugin raised
        raise RuntimeError(
            f"No TPU compiler for {topology} ({error}). `make plan` installs libtpu in an "
            'environment of its own; by hand: pip install "jax[tpu]" at the version of jax here.'
        ) from error
    return found, topologies.CHIPS[version]


def _chip_at_hand(device) -> Chip:
    machine = measure_machine(jnp.bfloat16)
    memory = (device.memory_stats() or {}).get("bytes_limit") or _host_memory()
    return Chip(device.device_kind, memory, machine.peak, machine.bandwidth, None)


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def abstract_model(name: str, config: ModelConfig, dtype) -> LanguageModel:
    """A model whose parameters are shapes and shardings on `config.mesh`."""
    shapes = jax.eval_shape(
        lambda key: transformer.init_params(config, key, dtype), jax.random.key(0)
    )
    params = _placed(shapes, sharding.param_shardings(config, shapes))
    return LanguageModel(name, config, transformer.Transformer(config), params, None, name)


def _placed(shapes, shardings):
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(place, shapes, shardings)


def _everywhere(mesh: Mesh, spec: PartitionSpec, shapes):
    where = NamedSharding(mesh, spec)
    return _placed(shapes, jax.tree.map(lambda _: where, shapes))


def training(model: LanguageModel, config: ConfigDict, work: Work, chip: Chip) -> Row:
    """One step of launch.train, with scanned layers and remat, `config.batch_size` examples.

    The teacher's passes, which keep nothing for gradients, are not compiled.

    Raises ValueError for a batch that the copies of the model cannot share.
    """
    mesh = model.config.mesh
    turns = sharding.examples_per_replica(mesh, config.batch_size)
    adapter_tokens = config.header + config.trailer
    optimizer = setup.make_optimizer(config, config.num_steps)
    soft = [jnp.zeros((n, model.config.dim)) for n in (config.header, config.trailer)]
    state = jax.eval_shape(lambda: loss_lib.init_state(Adapter(*soft), optimizer))
    state = _everywhere(mesh, PartitionSpec(), state)
    sizes = loss_lib.Sizes.of(
        work.preamble,
        work.documents,
        work.document + adapter_tokens,
        1,
        work.query + work.answer - 1,
        work.answer,
        adapter_tokens,
    )
    empty = functools.partial(loss_lib.empty, sizes, config.batch_size, model.config.dim)
    batch = _everywhere(mesh, PartitionSpec(sharding.DATA), jax.eval_shape(empty))
    step = loop.jit_step(model, optimizer, config.loss)
    return _row(
        f"training step, {config.batch_size} x {work.documents} x {work.document:,}",
        lambda: step.lower(model.params, state, batch),
        count_flops(step, model.params, state, batch).total,
        (model, state, batch),
        PASSES * turns,
        chip,
        mesh.size,
        1 + loop.second_copy(config, model, mesh.devices.flat[0].platform),
    )


def answering(model: LanguageModel, adapter_tokens: int, work: Work, chip: Chip) -> Row:
    """The query's prefill over composed packets: what a request waits for."""
    mesh, buckets = model.config.mesh, Buckets()
    wrapped = work.document + adapter_tokens
    last = work.preamble + (work.documents - 1) * wrapped + buckets.packet(wrapped)
    slots, rows = buckets.context(last), buckets.query(work.query)
    cache = jax.eval_shape(lambda: kv_cache.init(model.config, 1, slots, model.dtype))
    heads = functools.partial(sharding.heads, mesh)
    whole = sharding.replicated(mesh)
    where = jax.tree.map(lambda x: heads(x.ndim) if x.ndim > 2 else whole, cache)
    cache = _placed(cache, where)
    ids, length, start = (
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=whole) for shape in ((1, rows), (1,), ())
    )
    inputs = ((cache,), ids, length, start)
    program, tail = prefill_lib.prefill_program, buckets.tail(rows, work.answer)
    run = functools.partial(program, model.module, slots=tail)
    return _row(
        f"prefill of {work.query} over {slots:,} slots",
        lambda: program.lower(model.module, model.params, *inputs, slots=tail),
        count_flops(run, model.params, *inputs).total,
        (model, (), inputs),
        1,
        chip,
        model.num_devices,
    )


def _row(
    name: str,
    lower: Callable,
    flops: int,
    held,
    reads: int,
    chip: Chip,
    sharing: int,
    copies: int = 1,
) -> Row:
    """`held`: model, state, inputs; `sharing`: chips that share the work; `copies` of the model."""
    model, state, inputs = held
    started, sent, refusal = time.perf_counter(), (), ""
    try:
        compiled = lower().compile()
        memory = compiled.memory_analysis()
        made = memory.output_size_in_bytes - memory.alias_size_in_bytes
        temporaries = memory.temp_size_in_bytes + made
        sent = collectives.traffic(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:
        refusal = str(error).partition("\n")[0]
        if "RESOURCE_EXHAUSTED" not in refusal:
            raise
        temporaries = _asked_for(refusal) or chip.memory
    compile_s = time.perf_counter() - started
    parameters, kept, given = map(_bytes_on_a_chip, (model.params, state, inputs))
    return Row(
        program=name,
        parameters=copies * parameters,
        state=kept,
        inputs=given,
        temporaries=temporaries,
        memory=chip.memory,
        flops=flops,
        sent=sent,
        compile_s=compile_s,
        compute_s=flops / sharing / chip.peak,
        memory_s=reads * parameters / chip.bandwidth,
        links_s=sum(t.sent for t in sent) / chip.links if chip.links and not refusal else None,
        refusal=refusal,
    )


def _asked_for(refusal: str) -> int | None:
    """Bytes that a program would need for temporaries, if the TPU's compiler says so."""
    found = re.search(r"temporaries \(([\d.]+)([KMG])\)", refusal)
    return found and int(float(found[1]) * 1024 ** (1 + "KMG".index(found[2])))


def _bytes_on_a_chip(tree) -> int:
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def tables(rows: Sequence[Row]) -> tuple[rich.table.Table, rich.table.Table]:
    """Memory of one chip, and work; one line a program."""
    memory = table(
        ("program",), "parameters", "state", "inputs", "temporaries", "in all", "of", "share"
    )
    time = table(("program",), "FLOPs", "ms", "read ms", "sent", "ms", "least ms", "compile s")
    for row in rows:
        parts = (row.parameters, row.state, row.inputs, row.temporaries, row.total, row.memory)
        sizes = (f"{si(n)}B" for n in parts)
        memory.add_row(row.program, *sizes, f"{row.total / row.memory:.0%}")
        time.add_row(
            row.program,
            si(row.flops),
            f"{1e3 * row.compute_s:,.1f}",
            f"{1e3 * row.memory_s:,.1f}",
            "-" if row.refusal else f"{si(sum(t.sent for t in row.sent))}B",
            "unknown" if row.links_s is None else f"{1e3 * row.links_s:,.1f}",
            f"{1e3 * row.least_s:,.1f}",
            f"{row.compile_s:.0f}",
        )
    return memory, time


def verdict(row: Row) -> str:
    """Whether a program fits, what it sends, and what to change where it does not fit."""
    sent = ", ".join(f"{t.count:,} {t.kind} of {si(t.sent)}B" for t in row.sent)
    told = f"{row.program}: sends {sent or 'nothing'} (a chip, a step). "
    if row.refusal:
        told = f"{row.program}: {row.refusal} "
    elif row.total <= row.memory:
        return told + f"Fits: {row.total / row.memory:.0%} of a chip's memory."
    parts = {
        "parameters": "lay a copy of the model on more chips (--mesh=model:N)",
        "temporaries": "fewer or shorter documents, remat, or more chips for a copy (model:N)",
        "inputs": "fewer or shorter documents, or more chips for a copy (model:N)",
    }
    largest = max(parts, key=lambda part: getattr(row, part))
    needed = f"{'at least ' if row.refusal else ''}{si(row.total)}B"
    return told + (
        f"DOES NOT FIT: {needed} of {si(row.memory)}B, most of it {largest}: {parts[largest]}."
    )
