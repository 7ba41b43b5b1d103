"""What an answer of a session costs: measured anew, and in words."""

from typing import Any

import jax

from kvpacket_jax.data import Question
from kvpacket_jax.measure import cost, timing
from kvpacket_jax.measure.cost import Cost
from kvpacket_jax.measure.machine import measure_machine
from kvpacket_jax.measure.request import Entry
from kvpacket_jax.methods import METHODS, Request
from kvpacket_jax.runtime.format import milliseconds, si
from kvpacket_jax.serve import identity
from kvpacket_jax.serve.session import Session
from kvpacket_jax.storage import packet_file
from kvpacket_jax.storage.packet_file import packet_path

# Sides of `measure`; the third is cost.FULL.
WARM, COLD = "packets, files in memory", "packets, files from the disk"


def measure(session: Session, question: str, runs: int = 3) -> dict[str, Cost]:
    """What an answer to this question costs, warmed up and timed anew, with packets on disk.

    Returns:
      By side: `WARM`, from files that the system may hold in memory; `COLD`, from files that it
      was told to forget before each run; `cost.FULL`, over the same documents with the preamble's
      cache on the device. They run in turn, in the same rounds.
    """
    model, method = session.found.model, session.found.method
    query = identity.encode(model, session.found.wording, Question(question, ())).questions[0]
    preamble, documents = session.apart()
    request = Request([], [p.manifest.tokens for p in documents], query)

    def load() -> Any:
        packets = packet_file.load(session.found.folder, session.wanted, model)
        return method.arrange(model, packets)

    def forget() -> None:
        packet_file.forget(session.found.folder, session.wanted)

    packets = Entry(method, method.arrange(model, session.packets), "disk", load)
    full = Entry(METHODS[cost.FULL](), jax.device_put(preamble))
    entries = {WARM: packets, COLD: packets._replace(forget=forget), cost.FULL: full}
    machine = measure_machine(model.dtype, model.num_devices)
    rows = cost.measure(model, entries, request, runs, machine)
    return {row.method: row for row in rows}


def text(session: Session, costs: dict[str, Cost]) -> str:
    """The figures of `measure`, in words."""
    warm, full = costs[WARM], costs[cost.FULL]
    files = {packet_path(session.found.folder, wanted.name) for wanted in session.wanted}
    size = sum(path.stat().st_size for path in files)
    tokens = sum(len(packet.manifest.tokens) for packet in session.packets)
    times = [
        f"  {name:<30}{milliseconds(row.ttft_s):>7} ms "
        f"({' to '.join(map(milliseconds, row.ttft_quartiles_s))})"
        for name, row in costs.items()
    ]
    if costs[COLD].ttft_s <= warm.ttft_s:
        times.append("  The disk made no difference that can be told from that between runs.")
    ratio = timing.ratio(full.runs_s, warm.runs_s)
    parts = {"load": warm.load_s, "compose": warm.compose_s, "prefill": warm.prefill_s}
    return "\n".join(
        [
            f"{len(files)} packets on disk ({si(size)}B), {tokens:,} tokens.",
            f"TTFT to the logits on the host, median (quartiles) of {len(warm.runs_s)} runs in "
            "turn:",
            *times,
            f"{cost.FULL} takes {ratio:.1f} times the TTFT of {WARM}.",
            f"Parts of {WARM}, each from synchronised runs of its own, so that they do not add up "
            "to the TTFT: "
            + ", ".join(f"{name} {milliseconds(s)} ms" for name, s in parts.items())
            + ".",
            f"FLOPs {si(warm.flops_total)}; {si(warm.flops_overhead)} of them are overhead: beyond "
            "the query's own pass over a ready cache.",
            f"TTFT of {WARM} is {warm.to_floor:.1f} times the floor: the "
            f"{milliseconds(warm.floor_s)} ms that this machine takes at the least for these FLOPs "
            f"and {si(warm.least_bytes)}B.",
        ]
    )
