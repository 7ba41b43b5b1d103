"""What is shown of results: tables, and the same rows as JSON."""

import dataclasses
import datetime
import itertools
import json
import os
import pathlib
from collections.abc import Sequence

import rich.box
import rich.table
from rich.text import Text

from kvpacket_jax.evaluate.run import Row, spec_of
from kvpacket_jax.measure.machine import Machine
from kvpacket_jax.runtime.format import milliseconds, si, table
from models.files import write_whole


def method_table(rows: Sequence[Row]) -> rich.table.Table:
    """One line a method: what is right, TTFT and its parts, FLOPs, mean KL."""
    columns = ("right", "TTFT ms", "load", "compose", "prefill", "FLOPs", "overhead", "KL")
    found = table(("method",), *columns)
    for name, group in itertools.groupby(rows, key=lambda row: row.method):
        group = list(group)
        row = group[0]
        seconds = (row.ttft_s, row.load_s, row.compose_s, row.prefill_s)
        found.add_row(
            name,
            f"{sum(r.right for r in group)}/{len(group)}",
            *map(milliseconds, seconds),
            si(row.flops_total),
            si(row.flops_overhead),
            f"{sum(r.kl for r in group) / len(group):.2f}",
        )
    return found


def answer_table(rows: Sequence[Row]) -> rich.table.Table:
    """Every question with each method's answer."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for name in ("question", "method", "answer"):
        table.add_column(name)
    table.add_column("", no_wrap=True)
    for question in dict.fromkeys(row.question for row in rows):
        for i, row in enumerate(r for r in rows if r.question == question):
            verdict = "[green]right" if row.right else "[red]wrong"
            asked = Text("" if i else question)  # not markup, whatever brackets it has
            table.add_row(asked, row.method, Text(row.answer), verdict)
        table.add_section()
    return table


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:z.{digits}f}"


def _between(row: dict, key: str) -> str:
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return "-" if low is None else f"{low:z.2f} to {high:z.2f}"


def quality_table(results: Sequence[dict]) -> rich.table.Table:
    """One line a method and setting.

    F1 with its interval, its share of full_recompute's and the interval of the paired difference;
    agreement with full_recompute's answer, of all and of those where that is right; KL of the first
    token, and mean over the answer.
    """
    found = table(
        ("method",),
        *("n", "F1", "95 %", "÷ full", "difference", "agree", "if right", "KL", "answer's"),
    )
    for r in results:
        found.add_row(
            spec_of(r),
            str(r["num_samples"]),
            _number(r["f1"], 3),
            _between(r, "f1"),
            _number(r["f1_share"], 3),
            _between(r, "f1_difference"),
            _number(r["agree"]),
            _number(r.get("agree_where_right")),
            _number(r["kl"]),
            _number(r["kl_answer"]),
        )
    return found


def cost_table(results: Sequence[dict]) -> rich.table.Table:
    """One line a method and setting: TTFT with its parts, FLOPs, bytes kept."""
    found = table(
        ("method",),
        *("TTFT ms", "compose", "prefill", "FLOPs", "overhead", "XLA", "cache bytes"),
    )
    for r in results:
        found.add_row(
            spec_of(r),
            *(milliseconds(r[k]) for k in ("ttft_s", "compose_s", "prefill_s")),
            *(si(r[k]) for k in ("flops_total", "flops_overhead", "xla_flops", "cache_bytes")),
        )
    return found


def peak_share(row: Row, machine: Machine) -> str:
    """How near a method's one pass comes to what the machine can multiply, as a sentence."""
    rate = row.flops_matmul / row.ttft_s
    return (
        f"{row.method} runs at {si(rate)}FLOP/s, {rate / machine.peak:.0%} of the matrix peak "
        f"measured here ({si(machine.peak)}FLOP/s, {machine.dtype}; {machine.device}, "
        f"{machine.threads} threads, jax {machine.jax_version})."
    )


def write_json(path: str | os.PathLike, rows: Sequence[Row], machine: Machine) -> None:
    """Writes a list of rows, each with the machine it was made on, and the date."""
    made = {"machine": dataclasses.asdict(machine), "date": datetime.date.today().isoformat()}
    text = json.dumps([row._asdict() | made for row in rows], indent=1)
    write_whole(pathlib.Path(path).expanduser(), text + "\n")
