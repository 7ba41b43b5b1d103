"""full_recompute: documents and query in one pass over the cached preamble: the reference."""

import dataclasses
from collections.abc import Sequence

from kvpacket_jax.methods.base import Method, Prepared, build_preamble, end_to_end
from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.packet import Packet
from kvpacket_jax.packets.prefill import Context, prefill
from models import LanguageModel


@dataclasses.dataclass(frozen=True)
class FullRecompute(Method):
    """Stores the preamble only."""

    shares_context = True
    build_orders = build_preamble

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        context, start = end_to_end(stored)
        document_ids = [t for document in request.documents for t in document]
        ids = [*document_ids, *request.query]
        rows = self.buckets.rows(len(ids))
        prefilled = prefill(model, context, [ids], start, new_tokens, rows=rows)
        return Prepared(
            context,
            start + len(document_ids),
            prefilled,
            document_slots=max(0, rows - self.buckets.query(len(request.query))),
        )

    def shared_context(self, model, stored, request):
        return Prepared(*read_documents(model, stored, request.documents, self.buckets))


def read_documents(
    model: LanguageModel,
    stored: list[Packet],
    documents: Sequence[Sequence[int]],
    buckets: Buckets = Buckets(),
) -> tuple[Context, int]:
    """The documents read in full once, as a context for many questions, and its length.

    Gives the answers of full_recompute (and the teacher's) without a pass over the documents for
    each question; what one request costs is `prepare`'s.
    """
    context, start = end_to_end(stored)
    ids = [t for document in documents for t in document]
    if not ids:
        return context, start
    # Read in rows of about its length, and kept in one of the sizes of contexts, so that questions
    # of all sets of documents share programs.
    rows = buckets.rows(len(ids))
    read = prefill(model, context, [ids], start, rows=rows, slots=buckets.reading(rows))
    return (*context, read.tail), start + len(ids)
