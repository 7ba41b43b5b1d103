"""How long a token takes after the first: decoding runs in chunks, and a chunk is what is timed."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

from kvpacket_jax.measure import memory, timing
from kvpacket_jax.measure.machine import Machine
from kvpacket_jax.measure.request import Entry, query_pass
from kvpacket_jax.methods import Request
from kvpacket_jax.packets.buckets import CHUNK
from kvpacket_jax.packets.generate import stream
from kvpacket_jax.packets.prefill import Context
from models import LanguageModel


class Decoding(NamedTuple):
    """Of one answer, or a batch's, after the context that a method left.

    A token is one of each answer; its time is its share of a whole chunk's.
    """

    token_s: float  # seconds, median
    floor_s: float  # the least for reading parameters and context at the machine's bandwidth
    runs_s: tuple[float, ...]


class Chunk(NamedTuple):
    """The first CHUNK tokens of an answer after the first one, as what is timed."""

    before: Callable  # runs the query anew, which a chunk consumes; not timed
    call: Callable
    context: Context  # what each of its tokens reads


def first_chunk(model: LanguageModel, entry: Entry, request: Request) -> Chunk:
    """A greedy answer's first chunk over the context that a method left; nothing ends it early.

    Raises ValueError for an entry whose method runs the query itself.
    """
    prepared = entry.method.prepare(model, entry.stored, request)
    if prepared.prefilled is not None:
        raise ValueError("Decoding is measured after a method that leaves the query to prefill.")
    chunks = iter(())

    def before():
        nonlocal chunks
        prefilled = query_pass(model, entry, prepared, request)
        chunks = stream(model, prepared.context, prefilled, 1 + CHUNK, stop_ids=[])
        next(chunks)  # the first token, of the prefill

    return Chunk(before, lambda: next(chunks), prepared.context)


def measure(
    model: LanguageModel, entry: Entry, request: Request, machine: Machine, runs: int = 5
) -> Decoding:
    """Times the first chunk, compiled and warmed first.

    Raises ValueError for an entry whose method runs the query itself.
    """
    chunk = first_chunk(model, entry, request)
    seconds = timing.interleaved({"": chunk.call}, runs, before={"": chunk.before})[""]
    times = [s / CHUNK for s in seconds]
    read = memory.tree_bytes((model.params, chunk.context))
    if not model.config.tie_embeddings:  # of which a token needs one row
        read -= memory.tree_bytes(model.params["embedding"])
    return Decoding(statistics.median(times), read / machine.bandwidth, tuple(times))
