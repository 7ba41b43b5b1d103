"""What a request costs with each method, measured and shown: the work of launch/cost.py."""

import contextlib
import operator
import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.table

import models
from kvpacket_jax.measure import cost as cost_lib
from kvpacket_jax.measure.cost import Entry, Timing
from kvpacket_jax.measure.machine import Machine, floor_seconds, measure_machine
from kvpacket_jax.methods import METHODS, Method, Request, settings
from kvpacket_jax.methods.kv_packet import KVPacket
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.runtime.format import milliseconds, si, table
from kvpacket_jax.runtime.progress import console
from models import LanguageModel, sharding

ALONE = "query alone"
FULL = "full_recompute"

Step = Callable[[str], contextlib.AbstractContextManager]


class CostRow(NamedTuple):
    """One method's cost of one request, padding included; the first row's is the query alone."""

    method: str
    ttft_s: float  # median
    ttft_quartiles_s: tuple[float, float]
    to_alone: float  # median of TTFT over the query alone's in the same round
    to_full: float | None  # the same over full_recompute's; None where it is not there
    load_s: float
    compose_s: float
    prefill_s: float
    runs_s: tuple[float, ...]  # every TTFT
    flops_total: int
    flops_overhead: int
    flops_matmul: int
    xla_flops: float | None
    least_bytes: int
    peak_bytes: int | None
    floor_s: float  # the least this machine takes for these FLOPs and bytes
    to_floor: float  # the median over it
    context_slots: int  # that the method leaves, without the rows of its own pass


def document_lengths(text: str) -> list[int]:
    """Lengths from "8x1024", "512" or several of them with commas; ValueError for anything else."""
    lengths = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)\s*x)?\s*(\d+)\s*", part)
        count, length = (int(n) if n else 1 for n in match.groups()) if match else (0, 0)
        if count < 1 or length < 1:
            raise ValueError(
                f"{part!r} is not a number of documents and their length: 8x1024 means eight of "
                "1,024 tokens, 4x256,512 four of 256 and one of 512."
            )
        lengths += [length] * count
    return lengths


def random_request(
    model: LanguageModel, preamble: int, documents: Sequence[int], query: int, seed: int = 0
) -> Request:
    """A request of such lengths in tokens; ids are random, and the same for the same seed."""
    draw = np.random.default_rng(seed)
    ids = lambda n: draw.integers(0, model.config.vocab_size, n).tolist()  # noqa: E731
    return Request(ids(preamble), [ids(n) for n in documents], ids(query))


def soft_tokens(
    model: LanguageModel, source: str | None, header: int, trailer: int, seed: int = 0
) -> Adapter:
    """The trained adapter that `source` names (a folder or a shipped name), or a random one."""
    if source:
        # Whom it was trained for changes no cost: released ones and random models go together.
        return adapter_lib.load_adapter(source, model, other_model=True)
    return adapter_lib.init(jax.random.key(seed), model.params["embedding"], header, trailer)


class Measured(NamedTuple):
    """The rows of one point, and what they were measured with."""

    rows: list[CostRow]
    request: Request
    model: LanguageModel
    machine: Machine


def run(
    point: Mapping[str, Any],
    cache_dir: str | os.PathLike | None = None,
    mesh: str | None = None,
    profile_dir: str | None = None,
    step: Step = contextlib.nullcontext,
) -> Measured:
    """Loads a model and measures one point: `configs/evaluate.py:cost` has its fields.

    Raises ValueError, OSError or RuntimeError: what was found and what would do.
    """
    specs = settings.listed(point["methods"])
    specs = list(METHODS) if specs == ["all"] else specs
    lengths = document_lengths(point["documents"])
    for spec in specs:  # before the model is loaded
        settings.make(spec)
    seed = point["seed"]
    with step(f"Loading {point['model']}"):
        model = models.load(point["model"], point["dtype"], cache_dir, mesh)
        sharding.log_layout(model.config, model.params)
        soft = soft_tokens(model, point["adapter"], point["header"], point["trailer"], seed)
    methods = dict(settings.make(spec, soft) for spec in specs)
    request = random_request(model, point["preamble"], lengths, point["query"], seed)
    with step("Measuring this machine"):
        machine = measure_machine(model.dtype, model.num_devices)
    rows = measure(model, methods, request, machine, point["runs"], profile_dir, step)
    return Measured(rows, request, model, machine)


def measure(
    model: LanguageModel,
    methods: dict[str, Method],
    request: Request,
    machine: Machine,
    runs: int = 5,
    profile_dir: str | None = None,
    step: Step = contextlib.nullcontext,
) -> list[CostRow]:
    """Costs of one request: of the query alone over a ready cache, then of each method.

    Args:
      methods: by the label of their rows. The cache that the query alone reads is the context of
        the first that is a KVPacket; of one without an adapter, if there is none.
      runs: timed rounds. In each the sides run one after the other, after one that compiles.
      profile_dir: where a trace of one more round is written (for TensorBoard or Perfetto).
      step: called with what is about to be done; its context is entered around it.
    """
    packets = next((n for n, m in methods.items() if isinstance(m, KVPacket)), None)
    sources = methods if packets is not None else {None: KVPacket()} | methods
    stored = {}
    for name, method in sources.items():
        with step(f"{name or 'kv_packet'}: caching {len(request.documents)} documents"):
            kept = method.store(model, request.preamble, request.documents)
            stored[name] = Entry(method, jax.block_until_ready(kept))
    alone = cost_lib.query_alone(model, stored[packets], request)
    entries = {ALONE: alone} | {name: stored[name] for name in methods}
    counted = {}
    for name, entry in entries.items():
        with step(f"{name}: counting operations and bytes, compiling for its peak memory"):
            fixed = entry._replace(method=entry.method.resolved(model, entry.stored, request))
            counted[name] = (
                cost_lib.cost(model, fixed, request),
                cost_lib.least_bytes(model, fixed, request),
                cost_lib.peak_bytes(model, fixed, request),
                cost_lib.context_slots(model, fixed, request),
            )
    with step(f"Timing {len(entries)} sides, {runs} interleaved runs after a warm-up"):
        timings = cost_lib.time_methods(model, entries, request, runs)
    if profile_dir:
        with step(f"Tracing one more run of each into {profile_dir}"):
            cost_lib.trace(model, entries, request, profile_dir)
    rows = []
    for name, timing in timings.items():
        cost, least, peak, slots = counted[name]
        floor = floor_seconds(cost.flops_total, least, machine)
        row = CostRow(
            method=name,
            ttft_s=timing.ttft_s,
            ttft_quartiles_s=quartiles(timing.runs),
            to_alone=_ratio(timing, timings[ALONE]),
            to_full=_ratio(timing, timings[FULL]) if FULL in timings else None,
            load_s=timing.load_s,
            compose_s=timing.compose_s,
            prefill_s=timing.prefill_s,
            runs_s=timing.runs,
            **cost._asdict(),
            least_bytes=least,
            peak_bytes=peak,
            floor_s=floor,
            to_floor=timing.ttft_s / floor,
            context_slots=slots,
        )
        rows.append(row)
    return rows


def _ratio(timing: Timing, other: Timing) -> float:
    return statistics.median(map(operator.truediv, timing.runs, other.runs))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The values that a quarter and three quarters of them lie below, interpolated."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)


def tables(rows: Sequence[CostRow]) -> tuple[rich.table.Table, rich.table.Table]:
    """Times and work, one line a method each."""
    times = table(
        ("method",),
        *("TTFT ms", "quartiles", "÷ alone", "÷ full", "load", "compose", "prefill", "÷ floor"),
    )
    work = table(
        ("method",), "FLOPs", "overhead", "products", "XLA's", "bytes", "floor ms", "peak memory"
    )
    for row in rows:
        times.add_row(
            row.method,
            milliseconds(row.ttft_s),
            " to ".join(map(milliseconds, row.ttft_quartiles_s)),
            f"{row.to_alone:.2f}",
            "" if row.to_full is None else f"{row.to_full:.1%}",
            *map(milliseconds, (row.load_s, row.compose_s, row.prefill_s)),
            f"{row.to_floor:.2f}",
        )
        work.add_row(
            row.method,
            *map(_count, (row.flops_total, row.flops_overhead, row.flops_matmul, row.xla_flops)),
            f"{_count(row.least_bytes)}B",
            milliseconds(row.floor_s),
            f"{_count(row.peak_bytes)}B",
        )
    return times, work


def _count(value: float | None) -> str:
    return "unknown " if value is None else si(value)


def summary(rows: Sequence[CostRow], request: Request, model: LanguageModel) -> str:
    """What was run and what the columns say, in a few sentences."""
    documents = sum(map(len, request.documents))
    alone = rows[0]
    return (
        f"{model.name}: {len(request.preamble)} tokens of preamble, {len(request.documents)} "
        f"documents of {documents:,} tokens in all, a query of {len(request.query)}. "
        f"{ALONE}: its own pass over a ready cache of {alone.context_slots:,} slots. TTFT is the "
        f"median of {len(alone.runs_s)} interleaved runs; ÷ alone and ÷ full: the median of its "
        "ratio to the query alone, to full_recompute, in the same run; load, compose and prefill "
        "have runs of their own. bytes: "
        "what must move at the least. The floor is the longer of FLOPs at the machine's matrix "
        "peak and bytes at its bandwidth."
    )


def machine_line(machine: Machine) -> str:
    """What the figures were made on."""
    return (
        f"{machine.device} ({machine.platform}, {machine.devices} used, {machine.threads} "
        f"threads), {machine.dtype}, jax {machine.jax_version}; measured here: matrix peak "
        f"{si(machine.peak)}FLOP/s, memory {si(machine.bandwidth)}B/s."
    )


def show(measured: Measured) -> None:
    """Prints the tables with what they say."""
    console.print(*tables(measured.rows))
    console.print(summary(measured.rows, measured.request, measured.model), highlight=False)
    console.print(machine_line(measured.machine), highlight=False)
