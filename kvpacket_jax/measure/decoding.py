"""How long a token takes after the first: decoding runs in chunks, and a chunk is what is timed."""

import statistics
from typing import NamedTuple

from kvpacket_jax.measure import memory
from kvpacket_jax.measure.machine import Machine
from kvpacket_jax.measure.request import Entry, query_pass
from kvpacket_jax.measure.timing import call_seconds
from kvpacket_jax.methods import Request
from kvpacket_jax.packets.buckets import CHUNK
from kvpacket_jax.packets.generate import stream
from models import LanguageModel


class Decoding(NamedTuple):
    """Of one answer after the context that a method left; a token's share of a whole chunk."""

    token_s: float  # seconds, median
    floor_s: float  # the least for reading parameters and context at the machine's bandwidth
    runs_s: tuple[float, ...]


def measure(
    model: LanguageModel, entry: Entry, request: Request, machine: Machine, runs: int = 5
) -> Decoding:
    """Times the first chunk of a greedy answer, compiled and warmed first; nothing ends it early.

    Raises ValueError for an entry whose method runs the query itself.
    """
    prepared = entry.method.prepare(model, entry.stored, request)
    if prepared.prefilled is not None:
        raise ValueError("Decoding is measured after a method that leaves the query to prefill.")

    def seconds() -> float:
        # Anew for each run, which consumes it.
        prefilled = query_pass(model, entry.method, prepared, request)
        chunks = stream(model, prepared.context, prefilled, 1 + CHUNK, stop_ids=[])
        next(chunks)  # the first token, of the prefill
        return call_seconds(lambda: next(chunks)) / CHUNK

    times = [seconds() for _ in range(1 + runs)][1:]
    read = memory.tree_bytes((model.params, prepared.context))
    if not model.config.tie_embeddings:  # of which a token needs one row
        read -= memory.tree_bytes(model.params["embedding"])
    return Decoding(statistics.median(times), read / machine.bandwidth, tuple(times))
