"""What every method is: two pure functions, and its settings as fields."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from kvpacket_jax.packets.packet import Packet, build_packets
from kvpacket_jax.packets.prefill import Context, Prefilled
from models import LanguageModel


class Request(NamedTuple):
    """Token ids of one request; all methods see the same ones."""

    preamble: Sequence[int]  # may be empty
    documents: Sequence[Sequence[int]]
    query: Sequence[int]


class Prepared(NamedTuple):
    """A request whose documents are dealt with."""

    context: Context  # without the query; may be an empty tuple
    query_start: int  # position of the query's first token
    prefilled: Prefilled | None = None  # where the method's own pass ran the query
    info: dict[str, Any] = {}  # selected tokens and scores


class Method:
    """`store` is outside the clock, `prepare` inside. Neither times, tokenises or scores."""

    def store(
        self,
        model: LanguageModel,
        preamble: Sequence[int],
        documents: Sequence[Sequence[int]],
    ) -> Any:
        """What the method keeps: a pytree."""
        raise NotImplementedError

    def prepare(
        self, model: LanguageModel, stored: Any, request: Request, new_tokens: int = 0
    ) -> Prepared:
        """Gets ready to answer `request`; `new_tokens` will be decoded afterwards."""
        raise NotImplementedError

    def resolved(self, model: LanguageModel, stored: Any, request: Request) -> "Method":
        """The method with what `prepare` reads back for this request fixed, so that it is traced
        as it runs. Itself where nothing is read back, or `stored` holds shapes only.
        """
        return self

    def shared_context(
        self, model: LanguageModel, stored: Any, request: Request
    ) -> tuple[Context, int] | None:
        """The context that any question about these documents may share, and the position behind.

        For answers only; what one request costs is `prepare`'s. None if it depends on the query.
        """
        return None


class SharedMethod(Method):
    """A method whose context does not depend on the query."""

    def shared_context(self, model, stored, request):
        return self.prepare(model, stored, request)[:2]


def end_to_end(packets: Sequence[Packet]) -> tuple[Context, int]:
    """Packets that already stand at their places, as a context, and the position behind them."""
    return tuple(p.cache for p in packets), sum(p.length for p in packets)


def store_preamble(model: LanguageModel, preamble: Sequence[int]) -> list[Packet]:
    """The preamble's cache, never wrapped; none if it is empty."""
    return build_packets(model, None, [preamble]) if preamble else []
