"""What every method is: two pure functions, settings as fields, and what it declares of itself."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.packet import (
    Packet,
    build_packets,
    check_adapter,
    check_compressor,
)
from kvpacket_jax.packets.prefill import Context, Prefilled
from models import LanguageModel

Ids = Sequence[int]


def preamble_chunks(preamble: Ids) -> list[Ids]:
    """The preamble as the first chunk of a context; no chunk if it is empty.

    Decided here alone: whatever lists the chunks or packets of a request begins with these.
    """
    return [preamble] if len(preamble) else []


class Request(NamedTuple):
    """Token ids of one request; all methods see the same ones."""

    preamble: Ids  # may be empty
    documents: Sequence[Ids]
    query: Ids

    @property
    def chunks(self) -> list[Ids]:
        """What the context is made of, in its order: the preamble, if any, and the documents."""
        return [*preamble_chunks(self.preamble), *self.documents]

    @property
    def first_document(self) -> int:
        """The index of the first document among `chunks`."""
        return len(preamble_chunks(self.preamble))


class Prepared(NamedTuple):
    """A request that is ready for its query, or whose query has run."""

    context: Context  # without the query; may be an empty tuple
    query_start: int  # position of the query's first token
    prefilled: Prefilled | None = None  # where the method's own pass ran the query
    info: dict[str, Any] = {}  # selected tokens and scores
    # Slots of prefilled.tail beyond the query's bucket: of documents that the same pass read.
    document_slots: int = 0


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to answer from a preamble and documents. It never times, tokenises or scores.

    A subclass is a frozen dataclass; its fields are its settings. It implements `prepare`, replaces
    `build_documents` or `build_orders` if bare packets are not what it needs, and `arrange` if it
    needs more than them (`store` is both), and declares the following if it differs.

    reads_packets: the method answers from what `arrange` makes of one packet for each chunk of the
      request (`Request.chunks`), the documents wrapped by `adapter`. So the packets may come from a
      store on disk. `prepare` then uses nothing else of the request.
    adapter_role: what belongs in the method's field `adapter`: "adapter" (the one to evaluate) or
      "primer" (the one that needs no training); None where the method has no such field.
    shares_context: the context does not depend on the query, so that any number of questions about
      the same documents may share one: `shared_context`.
    adapter: what wraps the documents in `build_documents`; None for every method that uses none.
    compressor: what their packets are compressed by; None for every method that reads them whole.
    opening: whether the document that comes first has a packet of its own, where others are wrapped
      by an adapter: `adapter.opening`.
    buckets: the sizes that lengths are rounded up to. Every size that the method takes from Buckets
      comes from these; callers that run the query afterwards use the same ones.
    """

    reads_packets: ClassVar[bool] = False
    adapter_role: ClassVar[str | None] = None
    shares_context: ClassVar[bool] = False
    # Without types, or they would be the first of a subclass's fields.
    adapter = None
    compressor = None
    opening = False

    buckets: Buckets = dataclasses.field(default=Buckets(), kw_only=True)

    def check(self, model: LanguageModel) -> None:
        """Raises ValueError for a model, or parts of the method, that cannot work together.

        Callers ask before anything expensive; `store` and `prepare` may take it for granted.
        """
        check_adapter(model, self.adapter)
        check_compressor(self.adapter, self.compressor)

    def store(self, model: LanguageModel, preamble: Ids, documents: Sequence[Ids]) -> Any:
        """What is made once, outside the clock, and stored: a pytree. Raises as `build_packets`."""
        return self.arrange(model, self.build(model, preamble, documents))

    def build(self, model: LanguageModel, preamble: Ids, documents: Sequence[Ids]) -> list[Packet]:
        """The packets that `arrange` takes."""
        return next(self.build_orders(model, preamble, [documents]))

    def build_orders(
        self, model: LanguageModel, preamble: Ids, orders: Sequence[Sequence[Ids]]
    ) -> Iterator[list[Packet]]:
        """The packets of documents in each of several orders; none is built twice.

        Here one for each chunk: the preamble's, and those that `build_documents` makes, but for the
        first document's where there is an opening.

        Args:
          orders: lists of documents, mostly the same ones.
        """

        def first(documents: Sequence[Ids]) -> list[Packet]:
            alone = adapter_lib.opening(model.config.dim, preamble, self.adapter.distiller)
            return build_packets(model, alone, documents, self.buckets, self.compressor)

        kept = int(self._has_opening)
        apart = functools.partial(self.build_documents, model, preamble)
        opened = _each_once(first, [documents[:kept] for documents in orders])
        wrapped = _each_once(apart, [documents[kept:] for documents in orders])
        before = store_preamble(model, preamble, self.buckets)
        for chosen, others in zip(opened, wrapped, strict=True):
            yield [*before, *chosen, *others]

    def build_documents(
        self, model: LanguageModel, preamble: Ids, documents: Sequence[Ids]
    ) -> list[Packet]:
        """A packet of each, whatever stands beside it. Here wrapped by `adapter` and compressed."""
        return build_packets(model, self.adapter, documents, self.buckets, self.compressor)

    @property
    def _has_opening(self) -> bool:
        return self.opening and self.adapter is not None

    @property
    def recipe(self) -> Hashable:
        """Equal for two methods whose `build` gives the same packets, which one may make for both.

        Valid while both are alive: adapters are compared by identity.
        """
        built_by = type(self).build_orders, type(self).build_documents
        return *built_by, id(self.adapter), self.compressor, self._has_opening, self.buckets

    def arrange(self, model: LanguageModel, packets: Sequence[Packet]) -> Any:
        """What is stored, of packets that lie apart; outside the clock as well.

        Raises ValueError for packets that `model` cannot read.
        """
        return list(packets)

    def prepare(
        self, model: LanguageModel, stored: Any, request: Request, new_tokens: int = 0
    ) -> Prepared:
        """What is done for each request, inside the clock. `model` and `stored` are only read.

        Args:
          stored: what `store` returned for this preamble and these documents.
          new_tokens: how many will be decoded afterwards; a tail gets room for them.

        Raises:
          ValueError: a request that the model cannot take; where documents are run again, `stored`
            of documents of other lengths.
        """
        raise NotImplementedError

    def shared_context(
        self, model: LanguageModel, stored: Any, request: Request
    ) -> Prepared | None:
        """The context for any question about these documents, without one that has run.

        For answers only; what one request costs is `prepare`'s. None unless `shares_context`.
        """
        if not self.shares_context:
            return None
        return self.prepare(model, stored, request)._replace(prefilled=None, document_slots=0)

    def reseeded(self, example_id: str) -> "Method":
        """The method for one example: what is drawn at random differs between examples."""
        return self

    def resolved(self, model: LanguageModel, stored: Any, request: Request) -> "Method":
        """The method with the numbers that `prepare` reads back for this request fixed.

        So it is traced as it runs. Itself where nothing is read back, or `stored` has only shapes.
        """
        return self


def build_preamble(
    self: Method, model: LanguageModel, preamble: Ids, orders: Sequence
) -> Iterator[list[Packet]]:
    """`Method.build_orders` of methods that store the preamble alone."""
    return itertools.repeat(store_preamble(model, preamble, self.buckets), len(orders))


def _each_once(
    build: Callable[[Sequence[Ids]], list[Packet]], orders: Sequence[Sequence[Ids]]
) -> list[list[Packet]]:
    """The packets of the documents in each order, by one call with each document once."""
    known = dict.fromkeys(tuple(ids) for documents in orders for ids in documents)
    if not known:
        return [[] for _ in orders]
    packets = dict(zip(known, build(list(known)), strict=True))
    return [[packets[tuple(ids)] for ids in documents] for documents in orders]


def store_preamble(
    model: LanguageModel, preamble: Ids, buckets: Buckets = Buckets()
) -> list[Packet]:
    """The preamble's packet, never wrapped; none if it is empty."""
    return build_packets(model, None, preamble_chunks(preamble), buckets)


def end_to_end(packets: Sequence[Packet]) -> tuple[Context, int]:
    """Packets that are at their positions already, as a context, and the position after them."""
    return tuple(p.cache for p in packets), sum(p.length for p in packets)
