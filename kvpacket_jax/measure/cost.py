"""What one request costs with each method: the only pipeline, and its rows.

Everything that shows a cost (demo, answer, cost, evaluate) calls `measure`.
"""

import dataclasses
import statistics
from collections.abc import Mapping

import jax
import numpy as np

from kvpacket_jax.measure import timing
from kvpacket_jax.measure.machine import Machine, floor_seconds
from kvpacket_jax.measure.request import Entry, first_token, query_pass
from kvpacket_jax.measure.work import Work, count_work, is_one_pass
from kvpacket_jax.methods import Request
from kvpacket_jax.runtime.progress import SILENT, Progress
from models import LanguageModel

# Baselines: ratios to them are taken where they are among the sides measured.
ALONE = "query alone"
FULL = "full_recompute"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds. A request is one chain from its tier to the logits on the host, timed as a whole.

    The parts come from other runs, each synchronised at its end, so they do not add up to it.
    """

    ttft_s: float  # median
    ttft_quartiles_s: tuple[float, float]
    runs_s: tuple[float, ...]  # every TTFT
    load_s: float  # from a slower tier; 0 from the device
    compose_s: float  # a method's own work before the query's pass
    prefill_s: float  # the query's pass, or the one pass of a method that runs the query itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost(Work, Times):
    """One side's cost of one request, padding included: a row of every table of costs."""

    method: str  # the side's name
    tier: str  # where what the method stored lies before the request: device, host or disk
    to_alone: float | None  # median of TTFT ÷ the query alone's in the same round
    to_full: float | None  # the same, ÷ full_recompute's; None where it is not measured
    floor_s: float | None  # the least the machine takes for these FLOPs and bytes
    to_floor: float | None  # the median TTFT ÷ it; None without a machine, like it


def measure(
    model: LanguageModel,
    entries: Mapping[str, Entry],
    request: Request,
    runs: int = 3,
    machine: Machine | None = None,
    peak: bool = False,
    progress: Progress = SILENT,
) -> list[Cost]:
    """Counts, and times, one request by each entry; interleaved, compiled and warmed first.

    Args:
      entries: by the names of their rows. Ratios are to those named `ALONE` and `FULL`.
      runs: timed rounds; in each the sides run one after the other, after one that compiles.
      machine: what the floor is of; None leaves it out.
      peak: whether to compile the programs once more for their peak memory.

    Raises:
      ValueError: no run is asked for, or a request that is longer than the model's context.
    """
    works = {}
    for name, entry in entries.items():
        what = ", compiling for its peak memory" if peak else ""
        with progress.step(f"{name}: counting operations and bytes{what}"):
            works[name] = count_work(model, entry, request, peak)
    with progress.step(f"Timing {len(entries)} ways, {runs} interleaved runs after a warm-up"):
        times = time_requests(model, entries, request, runs)
    return [_row(name, entry, works[name], times, machine) for name, entry in entries.items()]


def _row(
    name: str, entry: Entry, work: Work, times: Mapping[str, Times], machine: Machine | None
) -> Cost:
    of_this = times[name]

    def to(side: str) -> float | None:
        return timing.ratio(of_this.runs_s, times[side].runs_s) if side in times else None

    floor = machine and floor_seconds(work.flops_total, work.least_bytes, machine)
    return Cost(
        method=name,
        tier=entry.tier,
        **vars(of_this),
        **vars(work),
        to_alone=to(ALONE),
        to_full=to(FULL),
        floor_s=floor,
        to_floor=floor and of_this.ttft_s / floor,
    )


def time_requests(
    model: LanguageModel, entries: Mapping[str, Entry], request: Request, runs: int = 3
) -> dict[str, Times]:
    """Times of one request by each entry, interleaved in this process, compiled and warmed first.

    The time to the first token runs from token ids on the host and packets on the entry's tier to
    logits on the host.
    """

    def whole(entry: Entry):
        return lambda: np.asarray(first_token(model, entry.loaded(), request).logits)

    ttft = timing.interleaved(
        {name: whole(entry) for name, entry in entries.items()},
        runs,
        before={name: entry.forget for name, entry in entries.items() if entry.forget},
    )
    calls, before = {}, {}
    for name, entry in entries.items():
        parts = _parts(model, entry, request)
        calls |= {(name, part): call for part, call in parts.items()}
        if entry.forget:
            before[name, "load"] = entry.forget
    of_part = timing.interleaved(calls, runs, before=before) if calls else {}
    return {
        name: Times(
            ttft_s=statistics.median(seconds),
            ttft_quartiles_s=timing.quartiles(seconds),
            runs_s=tuple(seconds),
            load_s=statistics.median(of_part.get((name, "load"), [0.0])),
            compose_s=statistics.median(of_part.get((name, "compose"), [0.0])),
            prefill_s=statistics.median(of_part.get((name, "prefill"), seconds)),
        )
        for name, seconds in ttft.items()
    }


def _parts(model: LanguageModel, entry: Entry, request: Request) -> dict:
    """Calls that do the parts of a request by themselves, by the parts' names."""
    parts = {} if entry.load is None else {"load": entry.load}
    loaded = jax.block_until_ready(entry.loaded())
    if is_one_pass(model, entry, request):
        if entry.load is not None:
            parts["prefill"] = lambda: np.asarray(first_token(model, loaded, request).logits)
        return parts  # else the pass is the whole

    def compose():
        return entry.method.prepare(model, loaded.stored, request).context

    ready = entry.method.prepare(model, loaded.stored, request)

    def run_query():
        return np.asarray(query_pass(model, entry, ready, request).logits)

    return parts | {"compose": compose, "prefill": run_query}


def trace(
    model: LanguageModel, entries: Mapping[str, Entry], request: Request, folder: str
) -> None:
    """Writes a jax profiler trace of one request by each entry, under its name, to `folder`."""
    with jax.profiler.trace(folder):
        for name, entry in entries.items():
            with jax.profiler.TraceAnnotation(name):
                np.asarray(first_token(model, entry.loaded(), request).logits)
