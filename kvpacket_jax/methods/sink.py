"""sink: documents are read at request time, each after the preamble and blind to the others."""

import dataclasses
import functools

import jax
import numpy as np

from kvpacket_jax.methods.base import Method, Prepared, build_preamble
from kvpacket_jax.methods.recompute import Layout, lay_out, side_by_side
from kvpacket_jax.packets.packet import check_ids, plan_batches
from kvpacket_jax.packets.prefill import prefill_rows
from models import kv_cache


@dataclasses.dataclass(frozen=True)
class Sink(Method):
    """Documents are computed inside the clock, at the positions they take in the context."""

    shares_context = True
    build_orders = build_preamble

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        for i, document in enumerate(request.documents):
            check_ids(model, document, f"Document {i}")
        layout = lay_out(model, request, new_tokens, self.buckets)
        preamble = tuple(p.cache for p in stored)
        caches = dict(enumerate(preamble))  # by chunk
        for rows, batch in _batches(layout):
            chunks = [layout.chunks[i] for i in batch]
            ids = np.stack([layout.padded_ids(c.start, rows) for c in chunks])
            lengths = np.array([len(c) for c in chunks], np.int32)
            starts = np.array([c.start for c in chunks], np.int32)
            read = _read(model.module, model.params, preamble, ids, lengths, starts)
            caches |= zip(batch, read, strict=True)
        in_order = [caches[i] for i in range(len(layout.chunks))]
        return Prepared((side_by_side(model, in_order, layout),), layout.length)


def _batches(layout: Layout):
    """(rows, chunks): documents of one size by their index, few sizes of batches."""
    first = layout.first_document
    for batch in plan_batches([len(chunk) for chunk in layout.chunks[first:]], layout.buckets.rows):
        yield batch.rows, [first + i for i in batch.members]


@functools.partial(jax.jit, static_argnames=("module",))
def _read(module, params, context, ids_BxT, lengths_B, starts_B):
    _, rows = prefill_rows(module, params, context, ids_BxT, lengths_B, start=starts_B[:, None])
    return [kv_cache.row(rows, i) for i in range(len(ids_BxT))]
