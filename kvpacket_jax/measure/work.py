"""The operations and bytes of one request, by tracing: nothing runs.

Arrays may be ShapeDtypeStructs, so that a model of any size can be counted anywhere. (Where they
are arrays, a method that reads a number back does so first: `Method.resolved`.)
"""

import dataclasses
import operator
from collections.abc import Callable

import jax

from kvpacket_jax.measure import flops, memory
from kvpacket_jax.measure.request import Entry, first_token, query_pass
from kvpacket_jax.methods import Prepared, Request
from kvpacket_jax.packets.packet import Packet
from kvpacket_jax.packets.pages import Laid
from kvpacket_jax.packets.prefill import Context, Prefilled, rows_of
from models import LanguageModel, kv_cache, paged
from models.kv_cache import KVCache
from models.transformer import Transformer, init_params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Operations and bytes of one request alone, padding included."""

    flops_total: int
    flops_overhead: int  # beyond the query alone over a ready cache of as many slots
    flops_matmul: int  # the matrix products in the total
    xla_flops: float | None  # XLA's count of the same chain, None where it would misread it
    least_bytes: int  # between memory and processor, however the programs are written
    peak_bytes: int | None  # of device memory; None if not asked for or not known
    context_slots: int  # that stand before the query's pass, or before the method's own
    cache_bytes: int  # of what the method stored; here without padding, as on disk
    cached_tokens: int  # positions of the packets in it


def count_work(model: LanguageModel, entry: Entry, request: Request, peak: bool = False) -> Work:
    """Counts what `first_token` runs. Only shapes are looked at: nothing runs.

    Attention in a kernel, or in blocks of keys, counts as the plain one that it stands for: over
    all slots, whether a row sees them or not.

    Args:
      peak: counts the peak memory too, for which the chain's programs are compiled.
    """
    entry = entry._replace(method=entry.method.resolved(model, entry.stored, request))
    peak_memory = peak_bytes(model, entry, request) if peak else None
    config = dataclasses.replace(model.config, paged_kernel=False, key_block=0)
    model = dataclasses.replace(model, config=config, module=Transformer(config))
    arrays = _abstract((model.params, entry.stored))
    total = flops.count_flops(_chain(model, entry, request), *arrays)
    context, _ = _outline(model, entry, request)

    def run_alone(params, context):
        ready = Prepared(context, 0)
        return _outputs(query_pass(_with(model, params), entry, ready, request))

    alone = flops.count_flops(run_alone, arrays[0], _plain(model, context))
    plain, *plain_arrays = _unrolled(model, *arrays)
    packets = jax.tree.leaves(entry.stored, is_leaf=lambda x: isinstance(x, (Packet, Laid)))
    return Work(
        flops_total=total.total,
        flops_overhead=total.total - alone.total,
        flops_matmul=total.matmul,
        xla_flops=flops.xla_flops(_chain(plain, entry, request), *plain_arrays),
        least_bytes=least_bytes(model, entry, request),
        peak_bytes=peak_memory,
        context_slots=context_slots(model, entry, request),
        cache_bytes=stored_bytes(entry.stored),
        cached_tokens=sum(x.length for x in packets if isinstance(x, (Packet, Laid))),
    )


def stored_bytes(stored) -> int:
    """Bytes of what a method stored; of packets, those of the slots that they fill."""
    parts = jax.tree.leaves(stored, is_leaf=lambda x: isinstance(x, (Packet, Laid)))
    return sum(map(_filled_bytes, parts))


def _filled_bytes(part: Packet | Laid | jax.Array) -> int:
    match part:
        case Packet():
            cache, slots = part.cache, part.slots
        case Laid():
            cache, slots = part.pool, sum(part.slots)
        case _:
            return memory.tree_bytes(part)
    return memory.tree_bytes(cache) * slots // (cache.batch * cache.num_slots)


def least_bytes(model: LanguageModel, entry: Entry, request: Request) -> int:
    """Bytes that must go between memory and processor, however the programs are written.

    The parameters, once for each program that needs them (an embedding table that is not the output
    too is not read, except for a few rows); what the method stored and uses, once; keys and values
    that are new, written once and read once: those of the context, unless the stored ones stay
    where they are, and those of the rows that run. Activations and logits could stay inside.
    """
    arrays = _abstract((model.params, entry.stored))
    reads, stored_reads = memory.reads(_chain(model, entry, request), *arrays)
    if not model.config.tie_embeddings:
        reads = reads | {"embedding": 0}
    params, stored = (jax.tree.map(memory.tree_bytes, tree) for tree in arrays)
    needed = jax.tree.map(lambda n, times: n * min(times, 1), stored, stored_reads)
    total = sum(jax.tree.leaves((jax.tree.map(operator.mul, params, reads), needed)))

    query_rows = entry.method.buckets.query(len(request.query))
    query_rows *= rows_of(entry.batch)
    rows = _outline(model, entry, request)[1] or query_rows
    row = memory.tree_bytes(jax.eval_shape(lambda: kv_cache.init(model.config, 1, 1, model.dtype)))
    new_context = memory.made_bytes(_context(model, entry, request), *arrays)
    return total + 2 * (new_context + rows * row)


def context_slots(model: LanguageModel, entry: Entry, request: Request) -> int:
    """Slots that stand before the query's own pass, or before the method's."""
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
    return memory.peak_bytes(_chain(model, entry, request), *arrays)


def is_one_pass(model: LanguageModel, entry: Entry, request: Request) -> bool:
    """Whether the method's own pass runs the query too, so that the request has no parts."""
    return _outline(model, entry, request)[1] > 0


def _chain(model: LanguageModel, entry: Entry, request: Request) -> Callable:
    def chain(params, stored):
        given = entry._replace(stored=stored)
        return _outputs(first_token(_with(model, params), given, request))

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

    The rows are 0 where the method leaves the query to `prefill`.
    """
    rows = 0

    def context(params, stored):
        nonlocal rows
        plain = _with(model, params)
        prepared = entry.method.prepare(plain, stored, request)
        if prepared.prefilled is None:
            return prepared.context
        rows = prepared.prefilled.slot
        documents = prepared.document_slots
        if not documents:
            return prepared.context
        # They were read in the same pass as the query, and stand before it in its tail.
        return (*prepared.context, kv_cache.init(model.config, 1, documents, plain.dtype))

    shapes = jax.eval_shape(context, *_abstract((model.params, entry.stored)))
    return shapes, rows


def _plain(model: LanguageModel, context: Context) -> Context:
    """Shapes of the context as caches that are ready, where it is read in place."""
    return jax.eval_shape(lambda c: tuple(paged.ready(model.config, x) for x in c), context)


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
