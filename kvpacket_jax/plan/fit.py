"""Will it fit? Programs compiled ahead of time for devices that need not be there.

Only shapes and shardings are given to the compiler; nothing runs and no weights are read. For a TPU
slice this is the TPU's own compiler (libtpu), which needs no TPU.
"""

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
from kvpacket_jax.data import EncodedExample
from kvpacket_jax.measure.flops import count_flops
from kvpacket_jax.measure.machine import measure_machine
from kvpacket_jax.measure.point import document_lengths
from kvpacket_jax.packets import distiller as distiller_lib
from kvpacket_jax.packets import prefill as prefill_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import Buckets, round_up
from kvpacket_jax.packets.caches import primer_cache
from kvpacket_jax.packets.pages import PAGE
from kvpacket_jax.plan import collectives, topologies
from kvpacket_jax.plan.topologies import Chip
from kvpacket_jax.runtime.format import si, table
from kvpacket_jax.runtime.progress import SILENT, Progress
from kvpacket_jax.train import loop, setup
from kvpacket_jax.train import step as step_lib
from kvpacket_jax.train.loss import Batch, pack
from kvpacket_jax.train.shapes import PREAMBLE_MULTIPLE, Fitted, Shape
from models import LanguageModel, kv_cache, low_rank, sharding, transformer
from models.config import ModelConfig
from models.kv_cache import KVCache
from models.paged import Paged

PRIMER_TOKENS = 600  # of kvpacket_jax/adapters/primer.json, about: a plan has no tokenizer


class Work(NamedTuple):
    """One request or one example: how many tokens."""

    documents: int
    document: int
    preamble: int
    query: int
    answer: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One program on one chip; bytes, unless said otherwise."""

    program: str
    parameters: int
    state: int  # adapter, its mean, optimizer and summed gradients
    inputs: int  # batch, or caches
    temporaries: int  # activations, gradients, results
    memory: int  # what a chip has
    flops: int  # on all chips together that share the work, padding included
    sent: tuple[collectives.Traffic, ...]
    compile_s: float
    compute_s: float  # FLOPs at the peak
    memory_s: float  # parameters read, at the bandwidth
    links_s: float | None  # what is sent, at the links' rate
    refusal: str = ""  # the compiler's words where there is no room; then the temporaries are its

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
    progress: Progress = SILENT,
) -> list[Row]:
    """Training and answering of `config.model` on a slice, or on the devices at hand.

    Raises ValueError or RuntimeError for what cannot be planned, and what would do.
    """
    setup.check(config)
    shape = models.shape(config.model)
    dtype = jnp.dtype("bfloat16" if config.dtype == "auto" else config.dtype)
    chips, chip = devices(topology)
    serving = dataclasses.replace(
        shape,
        mesh=sharding.make_mesh(mesh or f"model:{len(chips)}", shape, chips),
        shared_layers=models.parse_layers(config.shared_layers),
    )
    choices = setup.run_choices(config, chips[0].platform)
    student = abstract_model(config.model, dataclasses.replace(serving, **choices), dtype)
    wrapped = work.document + config.header + config.trailer
    student.check_length(
        work.preamble + work.documents * wrapped + work.query + work.answer  # as serving does
    )
    progress.say(sharding.describe(student.config, student.params))
    with progress.step(f"Compiling the gradients of a microbatch of {config.model}"):
        rows = [training(student, config, work, chip)]
    has_kernel = chips[0].platform == "tpu" and not serving.shared_layers
    for kernel in (False, True) if has_kernel else (False,):
        with progress.step(f"Compiling the prefill over packets{', in a kernel' * kernel}"):
            choice = dataclasses.replace(serving, paged_kernel=kernel)
            model = abstract_model(config.model, choice, dtype)
            rows.append(answering(model, config.header + config.trailer, work, chip))
    return rows


def devices(topology: str | None) -> tuple[Sequence[Any], Chip]:
    """The devices of a TPU slice, or those at hand, and what one of them can do.

    Raises RuntimeError where there is no TPU compiler.
    """
    if topology is None:
        return jax.devices(), _chip_at_hand(jax.devices()[0])
    version, _ = topologies.parse(topology)
    try:
        chips = get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # jax raises what the plugin raised
        raise RuntimeError(
            f"No TPU compiler for {topology} ({error}). `make plan` installs libtpu in an "
            'environment of its own; by hand: pip install "jax[tpu]" at the version of jax here.'
        ) from error
    return chips, topologies.CHIPS[version]


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


def _placed_cache(mesh: Mesh, cache: KVCache) -> KVCache:
    """A cache's shapes, keys and values split by their heads."""
    heads, whole = functools.partial(sharding.heads, mesh), sharding.replicated(mesh)
    return _placed(cache, jax.tree.map(lambda x: heads(x.ndim) if x.ndim > 2 else whole, cache))


def _everywhere(mesh: Mesh, spec: PartitionSpec, shapes):
    return _placed(shapes, jax.tree.map(lambda _: NamedSharding(mesh, spec), shapes))


def training(model: LanguageModel, config: ConfigDict, work: Work, chip: Chip) -> Row:
    """The gradients of one microbatch of launch.train, of `config.batch_size` examples.

    The teacher's passes, which store nothing for gradients, are not compiled; nor is the update,
    which is small. Raises ValueError for a batch that the replicas cannot share.
    """
    mesh = model.config.mesh
    sharding.examples_per_replica(mesh, config.batch_size)
    adapter = jax.eval_shape(functools.partial(_adapter, config, model.config))
    optimizer = setup.make_optimizer(config)
    state = jax.eval_shape(lambda: step_lib.init_state(_zeros(adapter), optimizer))
    sums = jax.eval_shape(step_lib.zero_sums, adapter)
    state, sums = _everywhere(mesh, PartitionSpec(), (state, sums))
    primer = _primer(model) if config.primer and not config.learn_primer else None
    shape = Shape(
        preamble=round_up(work.preamble, PREAMBLE_MULTIPLE),
        documents=work.documents,
        tokens=work.document,
        questions=1,
        row=work.query + work.answer - 1,
        new_tokens=work.answer,
        answers=work.answer,
    )
    batch = _everywhere(
        mesh, PartitionSpec(sharding.DATA), _microbatch(shape, config.batch_size, model.config.dim)
    )
    gradients = loop.jit_microbatch(model, config, shape.documents)
    inputs = (model.params, state.adapter, primer, sums, *batch)
    return _row(
        f"training microbatch, {config.batch_size} x {work.documents} x {work.document:,}",
        lambda: gradients.lower(*inputs),
        count_flops(gradients, *inputs).total,
        (model, (state, sums), (primer, batch)),
        2 + model.config.remat,  # forward, forward again, backward
        chip,
        mesh.size,
    )


def _adapter(config: ConfigDict, shape: ModelConfig) -> Adapter:
    """What a run of `config` trains, its values aside."""
    header, trailer = (jnp.zeros((n, shape.dim)) for n in (config.header, config.trailer))
    adapter = Adapter(header, trailer)
    if config.learn_primer:
        adapter = adapter._replace(primer=jnp.zeros((PRIMER_TOKENS, shape.dim)))
    if config.writer_rank:
        key, names = jax.random.key(0), tuple(config.writer_matrices)
        writer = low_rank.init(shape, key, config.writer_rank, names)
        adapter = adapter._replace(writer=writer)
    if config.distiller_rank:
        distiller = distiller_lib.init(shape, jax.random.key(0), config.distiller_rank)
        adapter = adapter._replace(distiller=distiller)
    return adapter


def _zeros(tree):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def _primer(model: LanguageModel):
    """The primer's cache, as `packet.read_primer` gives it."""
    ids = jax.ShapeDtypeStruct((PRIMER_TOKENS,), jnp.int32)
    read = functools.partial(primer_cache, model.module)
    return _placed_cache(model.config.mesh, jax.eval_shape(read, model.params, ids))


def _microbatch(shape: Shape, size: int, dim: int) -> tuple[Batch, jax.Array]:
    """The shapes of a microbatch and of the teacher's states."""
    encoded = EncodedExample([0], [[0]] * shape.documents, [[0]] * shape.questions)
    examples, answers = [Fitted("", (), encoded)] * size, [[[0]] * shape.questions] * size
    batch = pack(examples, answers, [[1.0] * shape.questions] * size, shape)
    states = (size, shape.questions, shape.new_tokens, dim)
    return batch, jax.ShapeDtypeStruct(states, jnp.float32)


def answering(model: LanguageModel, adapter_tokens: int, work: Work, chip: Chip) -> Row:
    """The query's prefill over packets in the pages of a pool: what a request waits for."""
    mesh, buckets = model.config.mesh, Buckets()
    packet = round_up(work.document + adapter_tokens, PAGE)
    slots = buckets.context(round_up(work.preamble, PAGE) + work.documents * packet)
    pages, rows = slots // PAGE, buckets.query(work.query)
    pool = jax.eval_shape(lambda: kv_cache.init(model.config, pages, PAGE, model.dtype))
    pool, whole = _placed_cache(mesh, pool), sharding.replicated(mesh)
    ids, length, start, starts = (
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=whole)
        for shape in ((1, rows), (1,), (), (pages,))
    )
    inputs = ((Paged(pool, None, starts),), ids, length, start)
    in_kernel = ", in a kernel" if model.config.paged_kernel else ""
    program, tail = prefill_lib.prefill_program, buckets.tail(rows, work.answer)
    run = functools.partial(program, model.module, slots=tail)
    return _row(
        f"prefill of {work.query} over {slots:,} slots{in_kernel}",
        lambda: program.lower(model.module, model.params, *inputs, slots=tail),
        count_flops(run, model.params, *inputs).total,
        (model, (), inputs),
        1,
        chip,
        model.num_devices,
    )


def _row(
    name: str, lower: Callable, flops: int, arrays, reads: int, chip: Chip, sharing: int
) -> Row:
    """Compiles one program.

    Args:
      arrays: model, state, inputs.
      reads: how often the program reads the parameters.
      sharing: chips that share the work.
    """
    model, state, inputs = arrays
    began, sent, refusal = time.perf_counter(), (), ""
    try:
        compiled = lower().compile()
        memory = compiled.memory_analysis()
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        temporaries = memory.temp_size_in_bytes + outputs
        sent = collectives.traffic(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:
        refusal = str(error).partition("\n")[0]
        if "RESOURCE_EXHAUSTED" not in refusal:
            raise
        temporaries = _refused_bytes(refusal) or chip.memory
    compile_s = time.perf_counter() - began
    parameters = _bytes_on_a_chip(model.params)
    return Row(
        program=name,
        parameters=parameters,
        state=_bytes_on_a_chip(state),
        inputs=_bytes_on_a_chip(inputs),
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


def _refused_bytes(refusal: str) -> int | None:
    """Bytes that a program would need for temporaries, if the TPU's compiler says so."""
    match = re.search(r"temporaries \(([\d.]+)([KMG])\)", refusal)
    return match and int(float(match[1]) * 1024 ** (1 + "KMG".index(match[2])))


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
    text = f"{row.program}: sends {sent or 'nothing'} (a chip, a run of the program). "
    if row.refusal:
        text = f"{row.program}: {row.refusal} "
    elif row.total <= row.memory:
        return text + f"Fits: {row.total / row.memory:.0%} of a chip's memory."
    parts = {
        "parameters": "lay each replica of the model on more chips (--mesh=model:N)",
        "temporaries": "fewer or shorter documents, remat, or more chips for a replica (model:N)",
        "inputs": "fewer or shorter documents, or more chips for a replica (model:N)",
    }
    largest = max(parts, key=lambda part: getattr(row, part))
    needed = f"{'at least ' if row.refusal else ''}{si(row.total)}B"
    return text + (
        f"DOES NOT FIT: {needed} of {si(row.memory)}B, most of it {largest}: {parts[largest]}."
    )
