"""What one request costs, for any method: operations, and seconds to the first token.

Methods know nothing of it. A request runs as one chain, `first_token`, which is what is counted and
what is timed.
"""

import dataclasses
import operator
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from kvpacket_jax.measure import flops
from kvpacket_jax.methods import Method, Prepared, Request
from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.prefill import Context, Prefilled, prefill
from models import LanguageModel, kv_cache
from models.kv_cache import KVCache
from models.transformer import Transformer, init_params


class Entry(NamedTuple):
    """A method with what it stored for a request's documents."""

    method: Method
    stored: Any


def first_token(model: LanguageModel, entry: Entry, request: Request) -> Prefilled:
    """All a method does from stored caches to the first token's logits; no host synchronisation."""
    with jax.profiler.TraceAnnotation("prepare"):
        prepared = entry.method.prepare(model, entry.stored, request)
    if prepared.prefilled is not None:  # the method's own pass ran the query
        return prepared.prefilled
    with jax.profiler.TraceAnnotation("prefill"):
        return prefill(model, prepared.context, [request.query], prepared.query_start)


# ---- what it costs


class Cost(NamedTuple):
    """Operations of one request alone, padding included."""

    flops_total: int
    flops_overhead: int  # beyond the query alone over a ready cache of as many slots
    flops_matmul: int  # the matrix products in the total
    xla_flops: float | None  # XLA's count of the same chain, None where it would misread it


def cost(model: LanguageModel, entry: Entry, request: Request) -> Cost:
    """Counts what `first_token` runs. Only shapes are looked at: nothing runs or compiles.

    `model.params` and the entry's arrays may be ShapeDtypeStructs. (Where they are arrays, a method
    that reads a number back does so first: `Method.resolved`.)
    """
    entry = entry._replace(method=entry.method.resolved(model, entry.stored, request))
    arrays = _abstract((model.params, entry.stored))
    total = flops.count_flops(_chain(model, entry.method, request), *arrays)
    context, _ = _outline(model, entry, request)

    def query_alone(params, context):
        return _outputs(prefill(_with(model, params), context, [request.query], 0))

    alone = flops.count_flops(query_alone, arrays[0], context)
    plain, *arrays = _unrolled(model, *arrays)
    xla = flops.xla_flops(_chain(plain, entry.method, request), *arrays)
    return Cost(total.total, total.total - alone.total, total.matmul, xla)


def least_bytes(model: LanguageModel, entry: Entry, request: Request) -> int:
    """Bytes that must go between memory and processor, whoever writes the programs.

    The parameters, once for each program that needs them (an embedding table that is not the output
    too is not read, but for a few rows); what the method stored and uses, once; keys and values
    that are made, written once and read once: those of the context, unless the stored ones stay
    where they are, and those of the rows that run. Activations and logits could stay inside.
    Found by tracing alone, as in `cost`.
    """
    arrays = _abstract((model.params, entry.stored))
    read, stored_read = flops.reads(_chain(model, entry.method, request), *arrays)
    if not model.config.tie_embeddings:
        read = read | {"embedding": 0}
    params, stored = (jax.tree.map(flops.tree_bytes, tree) for tree in arrays)
    needed = jax.tree.map(lambda n, times: n * min(times, 1), stored, stored_read)
    total = sum(jax.tree.leaves((jax.tree.map(operator.mul, params, read), needed)))

    rows = _outline(model, entry, request)[1] or Buckets().query(len(request.query))
    row = flops.tree_bytes(jax.eval_shape(lambda: kv_cache.init(model.config, 1, 1, model.dtype)))
    return total + 2 * (flops.made_bytes(_context(model, entry, request), *arrays) + rows * row)


def context_slots(model: LanguageModel, entry: Entry, request: Request) -> int:
    """Slots that stand before the query's own pass, or before the method's; by tracing alone."""

    context = _context(model, entry, request)
    shapes = jax.eval_shape(context, *_abstract((model.params, entry.stored)))
    return sum(cache.num_slots for cache in shapes)


def peak_bytes(model: LanguageModel, entry: Entry, request: Request) -> int | None:
    """Device memory at the most while `first_token` runs, with parameters and what is stored.

    Compiles the chain's programs and runs nothing. None where the backend does not say, and on a
    mesh, whose devices hold different parts.
    """
    if model.config.mesh:
        return None
    arrays = _abstract((model.params, entry.stored))
    return flops.peak_bytes(_chain(model, entry.method, request), *arrays)


@dataclasses.dataclass(frozen=True)
class Ready(Method):
    """Reads the query over the context that is stored."""

    start: int

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        return Prepared(stored, self.start)


def query_alone(model: LanguageModel, entry: Entry, request: Request) -> Entry:
    """The query's own pass over the context that a method composes, made beforehand.

    What no method that leaves the query to `prefill` can be faster than over this context.
    """
    prepared = entry.method.prepare(model, entry.stored, request)
    return Entry(Ready(prepared.query_start), jax.block_until_ready(prepared.context))


def _chain(model: LanguageModel, method: Method, request: Request) -> Callable:
    def chain(params, stored):
        return _outputs(first_token(_with(model, params), Entry(method, stored), request))

    return chain


def _context(model: LanguageModel, entry: Entry, request: Request) -> Callable:
    def context(params, stored):
        return entry.method.prepare(_with(model, params), stored, request).context

    return context


def _outputs(prefilled: Prefilled):
    return prefilled.logits, prefilled.tail


def _with(model: LanguageModel, params) -> LanguageModel:
    return dataclasses.replace(model, params=params)


def _abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _outline(model: LanguageModel, entry: Entry, request: Request) -> tuple[Context, int]:
    """Shapes of the context a method leaves before the query, and the rows its own pass ran.

    Found by tracing alone. The rows are 0 where the method leaves the query to `prefill`.
    """
    rows = 0

    def context(params, stored):
        nonlocal rows
        plain = _with(model, params)
        prepared = entry.method.prepare(plain, stored, request)
        if prepared.prefilled is None:
            return prepared.context
        rows = prepared.prefilled.slot
        documents = rows - Buckets().query(len(request.query))
        if documents <= 0:
            return prepared.context
        # They were read in the same pass as the query, and stand before it in its tail.
        return (*prepared.context, kv_cache.init(model.config, 1, documents, plain.dtype))

    shapes = jax.eval_shape(context, *_abstract((model.params, entry.stored)))
    return shapes, rows


def _unrolled(model: LanguageModel, params, stored):
    """The same work without loops, which XLA's cost analysis counts once."""
    c = dataclasses.replace(model.config, scan_layers=False, query_block=10**9, mesh=None)
    if model.config.scan_layers:
        params = jax.eval_shape(lambda k: init_params(c, k, model.dtype), jax.random.key(0))

    def per_layer(cache: KVCache) -> KVCache:
        if isinstance(cache.k, tuple):
            return cache
        k, v, bias = (
            x and tuple(jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for _ in range(c.num_layers))
            for x in (cache.k, cache.v, cache.bias)
        )
        return cache._replace(k=k, v=v, bias=bias)

    is_cache = lambda x: isinstance(x, KVCache)  # noqa: E731
    stored = jax.tree.map(lambda x: per_layer(x) if is_cache(x) else x, stored, is_leaf=is_cache)
    return dataclasses.replace(model, config=c, module=Transformer(c)), params, stored


# ---- how long it takes


class Timing(NamedTuple):
    """Seconds, medians; the parts come from runs of their own, so they need not add up."""

    ttft_s: float  # from ids on the host and packets on the device to logits on the host
    load_s: float  # from a slower tier: nothing here
    compose_s: float  # a method's own work before the query's pass
    prefill_s: float  # the query's pass, or the one pass of a method that runs the query itself
    runs: tuple[float, ...]  # every TTFT


def time_methods(
    model: LanguageModel, entries: dict[str, Entry], request: Request, runs: int = 3
) -> dict[str, Timing]:
    """Times methods on one request, interleaved in this process, compiled and warmed first."""

    def logits(entry):
        return lambda: np.asarray(first_token(model, entry, request).logits)

    ttft = flops.measure({name: logits(entry) for name, entry in entries.items()}, runs)
    parts = {}
    for name, entry in entries.items():
        if _outline(model, entry, request)[1] == 0:  # one pass for all is its own only part
            parts |= _parts(model, name, entry, request)
    measured = flops.measure(parts, runs) if parts else {}
    return {
        name: Timing(
            ttft_s=statistics.median(seconds),
            load_s=0.0,
            compose_s=statistics.median(measured.get((name, "compose"), [0.0])),
            prefill_s=statistics.median(measured.get((name, "prefill"), seconds)),
            runs=tuple(seconds),
        )
        for name, seconds in ttft.items()
    }


def trace(model: LanguageModel, entries: dict[str, Entry], request: Request, folder: str) -> None:
    """Writes a jax profiler trace of one request by each method, under its name, to `folder`."""
    with jax.profiler.trace(folder):
        for name, entry in entries.items():
            with jax.profiler.TraceAnnotation(name):
                np.asarray(first_token(model, entry, request).logits)


def _parts(model: LanguageModel, name: str, entry: Entry, request: Request):
    def compose():
        return entry.method.prepare(model, entry.stored, request).context

    ready = entry.method.prepare(model, entry.stored, request)

    def run():
        return np.asarray(prefill(model, ready.context, [request.query], ready.query_start).logits)

    return {(name, "compose"): compose, (name, "prefill"): run}
