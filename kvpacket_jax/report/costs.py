"""How costs are shown: every figure's heading, its form and what it is, the same everywhere."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import rich.table

from kvpacket_jax.measure.cost import ALONE, FULL, Cost
from kvpacket_jax.measure.decoding import Decoding
from kvpacket_jax.measure.machine import Machine
from kvpacket_jax.measure.point import Beside
from kvpacket_jax.methods import Request
from kvpacket_jax.runtime.format import milliseconds, si
from kvpacket_jax.runtime.format import table as empty_table
from models import LanguageModel


class Column(NamedTuple):
    heading: str
    show: Callable[[Any], str]
    meaning: str = ""  # a sentence; empty where another column's says it


def _count(value: float | None) -> str:
    return "unknown" if value is None else si(value)


def _bytes(value: float | None) -> str:
    return "unknown" if value is None else f"{si(value)}B"


PARTS = (
    "load, compose and prefill are the parts of a request, each from synchronised runs of its own: "
    "they do not add up to TTFT."
)

# The fields of `Cost` that are shown.
COLUMNS = {
    "ttft_s": Column(
        "TTFT ms",
        milliseconds,
        "TTFT is the median time of interleaved runs, from token ids on the host and caches in "
        "their tier (device memory, if no other is named) to the first token's logits on the host.",
    ),
    "ttft_quartiles_s": Column(
        "quartiles",
        lambda ends: " to ".join(map(milliseconds, ends)),
        "The quartiles are of those runs.",
    ),
    "to_alone": Column(
        "÷ alone",
        lambda ratio: f"{ratio:.2f}",
        f"÷ alone is the median of TTFT over that of {ALONE} in the same run.",
    ),
    "to_full": Column(
        "÷ full",
        lambda ratio: f"{ratio:.1%}",
        f"÷ full is the median of TTFT over that of {FULL} in the same run.",
    ),
    "load_s": Column("load", milliseconds, PARTS),
    "compose_s": Column("compose", milliseconds),
    "prefill_s": Column("prefill", milliseconds),
    "to_floor": Column("÷ floor", lambda ratio: f"{ratio:.2f}", "÷ floor is TTFT over the floor."),
    "flops_total": Column("FLOPs", _count, "FLOPs are of the whole request, padding included."),
    "flops_overhead": Column(
        "overhead",
        _count,
        "overhead is their part beyond the query's own pass over a ready cache of as many slots.",
    ),
    "flops_matmul": Column("products", _count, "products are the matrix products in FLOPs."),
    "xla_flops": Column("XLA's", _count, "XLA's is its own count of the same request."),
    "least_bytes": Column("bytes", _bytes, "bytes are those that must move at the least."),
    "floor_s": Column(
        "floor ms",
        milliseconds,
        "The floor is the longer of FLOPs at this machine's matrix peak and bytes at its "
        "bandwidth.",
    ),
    "peak_bytes": Column("peak memory", _bytes, "peak memory is with parameters and caches."),
    "cache_bytes": Column("cache bytes", _count, "cache bytes are those of what a method stored."),
}

TIMES = (
    *("ttft_s", "ttft_quartiles_s", "to_alone", "to_full"),
    *("load_s", "compose_s", "prefill_s", "to_floor"),
)
WORK = (
    *("flops_total", "flops_overhead", "flops_matmul", "xla_flops"),
    *("least_bytes", "floor_s", "peak_bytes"),
)


def present(rows: Sequence[Mapping], fields: Sequence[str]) -> list[str]:
    """Those of the fields that any of the rows has."""
    return [f for f in fields if any(row.get(f) is not None for row in rows)]


def shown(row: Mapping, fields: Sequence[str]) -> list[str]:
    """A row's fields as text; one that is not known and has no word for it is empty."""
    texts = []
    for field in fields:
        value, show = row.get(field), COLUMNS[field].show
        texts.append("" if value is None and show not in (_count, _bytes) else show(value))
    return texts


def meanings(fields: Sequence[str]) -> str:
    """What the columns of these fields say, a sentence each."""
    return " ".join(filter(None, (COLUMNS[field].meaning for field in fields)))


def tables(rows: Sequence[Cost]) -> tuple[rich.table.Table, rich.table.Table]:
    """Times and work, one line a row each; of columns that no row has, none."""
    dicts = list(map(dataclasses.asdict, rows))
    times, work = (_table(dicts, present(dicts, fields)) for fields in (TIMES, WORK))
    return times, work


def _table(rows: Sequence[Mapping], fields: Sequence[str]) -> rich.table.Table:
    table = empty_table(("method",), *(COLUMNS[f].heading for f in fields))
    for row in rows:
        table.add_row(row["method"], *shown(row, fields))
    return table


def legend(rows: Sequence[Cost]) -> str:
    """What the columns of `tables` say."""
    return meanings(present(list(map(dataclasses.asdict, rows)), TIMES + WORK))


def request_line(
    rows: Sequence[Cost], request: Request, model: LanguageModel, batch: int = 1
) -> str:
    """What was run, the first row being the query alone's."""
    documents, alone = sum(map(len, request.documents)), rows[0]
    at_once = f", {batch} such requests at once" if batch > 1 else ""
    in_kernel = ", packets attended to in a kernel" if model.config.paged_kernel else ""
    return (
        f"{model.name}: {len(request.preamble)} tokens of preamble, {len(request.documents)} "
        f"documents of {documents:,} tokens in all, a query of "
        f"{len(request.query)}{at_once}{in_kernel}; "
        f"{len(alone.runs_s)} runs, caches in memory of the {rows[-1].tier}. {ALONE} is its own "
        f"pass over a ready cache of {alone.context_slots:,} slots."
    )


def decoding_line(rows: Sequence[Cost], decoding: Decoding) -> str:
    """What a token after the first takes, `rows` being a point's."""
    return (
        f"A token after the first takes {1e3 * decoding.token_s:.2f} ms over the cache of "
        f"{rows[0].method}, median of {len(decoding.runs_s)} runs; reading parameters and cache at "
        f"this machine's bandwidth takes {1e3 * decoding.floor_s:.2f} ms."
    )


def beside_table(beside: Beside) -> rich.table.Table:
    """Here and in PyTorch's transformers, a line for each work."""
    table = empty_table((f"beside {beside.peer}",), "here ms", "there ms", "here ÷ there")
    for pair in beside.pairs:
        times = (statistics.median(runs) for runs in (pair.ours_s, pair.theirs_s))
        table.add_row(pair.work, *map(milliseconds, times), f"{pair.ratio:.2f}")
    return table


def machine_line(machine: Machine) -> str:
    """What the figures were made on."""
    return (
        f"{machine.device} ({machine.platform}, {machine.devices} used, {machine.threads} "
        f"threads), {machine.dtype}, jax {machine.jax_version}; measured here: matrix peak "
        f"{si(machine.peak)}FLOP/s, memory {si(machine.bandwidth)}B/s."
    )


def peak_share(row: Cost, machine: Machine) -> str:
    """How near a method's one pass comes to what the machine can multiply, as a sentence."""
    rate = row.flops_matmul / row.ttft_s
    return (
        f"{row.method} runs at {si(rate)}FLOP/s, {rate / machine.peak:.0%} of the matrix peak "
        f"measured here ({si(machine.peak)}FLOP/s, {machine.dtype}; {machine.device}, "
        f"{machine.threads} threads, jax {machine.jax_version})."
    )
