"""Answers from a store: packets of named documents become a context for any number of questions."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax

from kvpacket_jax.data import Question, Template
from kvpacket_jax.measure import cost, timing
from kvpacket_jax.measure.cost import Cost
from kvpacket_jax.measure.machine import measure_machine
from kvpacket_jax.measure.request import Entry
from kvpacket_jax.methods import METHODS, Method, Request, settings
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.generate import stream
from kvpacket_jax.packets.packet import Packet, Provenance
from kvpacket_jax.packets.prefill import Context, prefill
from kvpacket_jax.runtime.format import milliseconds, si
from kvpacket_jax.serve import build, packet_file, store
from kvpacket_jax.serve.build import Wording
from models import LanguageModel

READ_PACKETS = ("kv_packet", "no_recompute")
WHY_NOT = {
    "no_cache": "it reads no documents at all",
    "single_cache": "its one cache is of these documents in this order, no packet of each",
}


class Session(NamedTuple):
    """Documents that questions can be asked about."""

    model: LanguageModel
    wording: Wording
    method: Method
    folder: pathlib.Path
    wanted: list[tuple[str, Provenance]]  # as `packet_file.load` takes it, the preamble first
    packets: list[Packet]
    load_s: float  # seconds it took to read them
    context: Context
    start: int  # position of a question's first token


def check_method(name: str) -> None:
    """Raises ValueError for a method that does not answer from packets, saying why."""
    if name not in METHODS:
        raise ValueError(f"There is no method {name!r}; {' and '.join(READ_PACKETS)} read packets.")
    if name not in READ_PACKETS:
        why = WHY_NOT.get(name, "it runs tokens of the documents through the model every time")
        raise ValueError(
            f"{name} does not answer from a store's packets: {why}. {' and '.join(READ_PACKETS)} "
            "do; launch.evaluate compares them all."
        )


def open_session(
    model: LanguageModel,
    folder: pathlib.Path,
    ids: Sequence[str],
    wording: Wording,
    method: str = "kv_packet",
    adapter: Adapter | None = None,
) -> Session:
    """Reads the packets of documents, in their order, and composes them.

    Raises:
      ValueError: a method that reads no packets, documents that are not there or were made by
        another model, tokenizer, template or adapter; a context longer than the model's.
      FileNotFoundError, Damaged: naming the packet's file.
    """
    check_method(method)
    if not ids:
        raise ValueError("No document was named: give --documents=id1,id2.")
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no store {folder}. launch.build_packets makes one.")
    made = settings.make(method, adapter)[1]
    provenance = build.document_provenance(model, made.adapter, wording)
    wanted = [(name, provenance) for name in store.find(folder, provenance, ids)]
    preamble_by, preamble = build.preamble_item(model, wording)
    if preamble:
        if not packet_file.packet_path(folder, preamble.name).exists():
            raise FileNotFoundError(
                f"{folder} has no packet of the preamble {wording.instruction!r}. Give --preamble "
                "and --template as they were given to launch.build_packets, or run it with these: "
                "it keeps the documents that are there."
            )
        wanted.insert(0, (preamble.name, preamble_by))
    start = time.perf_counter()
    packets = packet_file.load(folder, wanted, model)
    load_s = time.perf_counter() - start
    context = made.shared_context(model, packets, Request([], [], []))
    return Session(model, wording, made, folder, wanted, packets, load_s, *context)


def answer(session: Session, question: str, new_tokens: int = 32) -> Iterator[str]:
    """The answer to a question, piece by piece as it is decoded.

    Raises ValueError where question and answer do not fit behind the documents.
    """
    model, asked = session.model, Question(question, ())
    ids = build.encode(model, session.wording, asked).questions
    ready = prefill(model, session.context, ids, session.start, new_tokens)
    blocks = (fresh for (fresh,) in stream(model, session.context, ready, new_tokens))
    yield from pieces(blocks, model.tokenizer.decode, session.wording.template, asked)


def pieces(
    blocks: Iterable[list[int]],
    decode: Callable[[list[int]], str],
    template: Template,
    question: Question,
) -> Iterator[str]:
    """New token ids, block by block, as pieces of text that join to the template's answer.

    Blocks are not asked for beyond the first stop.
    """
    tokens: list[int] = []
    text = shown = ""
    for fresh in blocks:
        tokens += fresh
        text = decode(tokens)
        # An incomplete character is decoded as U+FFFD until the rest of it comes.
        so_far = template.answer(question, text).rstrip("\ufffd").rstrip()
        if len(so_far) > len(shown):
            yield so_far[len(shown) :]
            shown = so_far
        if any(stop in text for stop in template.stop[question.form]):
            break
    if rest := template.answer(question, text)[len(shown) :]:
        yield rest


def questions() -> Iterator[str]:
    """Lines of standard input until it ends or is interrupted; asked for at a terminal."""
    prompt = "\nquestion> " if sys.stdin.isatty() else ""
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            if line := input(prompt).strip():
                yield line


# Sides of `measure`; the third is cost.FULL.
WARM, COLD = "packets, files in memory", "packets, files from the disk"


def measure(session: Session, question: str, runs: int = 3) -> dict[str, Cost]:
    """What an answer to this question costs, warmed up and timed anew, with packets on disk.

    Returns:
      By side: `WARM`, from files that the system may hold in memory; `COLD`, from files that it
      was told to forget before each run; `cost.FULL`, over the same documents with the preamble's
      cache on the device. They run in turn, in the same rounds.
    """
    model = session.model
    query = build.encode(model, session.wording, Question(question, ())).questions[0]
    documents_by = session.wanted[-1][1]
    documents, preamble = [], []
    for packet, (_, provenance) in zip(session.packets, session.wanted, strict=True):
        (documents if provenance == documents_by else preamble).append(packet)
    request = Request([], [p.manifest.tokens for p in documents], query)

    def load() -> list[Packet]:
        return packet_file.load(session.folder, session.wanted, model)

    def forget() -> None:
        packet_file.forget(session.folder, session.wanted)

    packets = Entry(session.method, jax.device_put(session.packets), "disk", load)
    full = Entry(METHODS[cost.FULL](), jax.device_put(preamble))
    entries = {WARM: packets, COLD: packets._replace(forget=forget), cost.FULL: full}
    machine = measure_machine(model.dtype, model.num_devices)
    rows = cost.measure(model, entries, request, runs, machine)
    return {row.method: row for row in rows}


def cost_text(session: Session, costs: dict[str, Cost]) -> str:
    """The figures of `measure`, in words."""
    warm, full = costs[WARM], costs[cost.FULL]
    files = {packet_file.packet_path(session.folder, name) for name, _ in session.wanted}
    size = sum(path.stat().st_size for path in files)
    tokens = sum(len(packet.manifest.tokens) for packet in session.packets)
    times = [
        f"  {name:<30}{milliseconds(row.ttft_s):>7} ms "
        f"({' to '.join(map(milliseconds, row.ttft_quartiles_s))})"
        for name, row in costs.items()
    ]
    if costs[COLD].ttft_s <= warm.ttft_s:
        times.append(
            "  Reading from the disk costs less than runs differ, or nothing was forgotten."
        )
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
