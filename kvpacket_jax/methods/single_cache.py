"""single_cache: preamble and documents read together offline, as one cache. Exact, not reusable."""

import dataclasses
from collections.abc import Iterator

from kvpacket_jax.methods.base import Method, Prepared, Request, end_to_end
from kvpacket_jax.packets.packet import Packet, build_packets


@dataclasses.dataclass(frozen=True)
class SingleCache(Method):
    """Stores one cache of all chunks."""

    shares_context = True

    def build_orders(self, model, preamble, orders) -> Iterator[list[Packet]]:
        return (self._whole(model, preamble, documents) for documents in orders)

    def _whole(self, model, preamble, documents) -> list[Packet]:
        whole = [t for chunk in Request(preamble, documents, ()).chunks for t in chunk]
        # Padded as little as full_recompute's pass: it is the bound of what a cache can do.
        rows = self.buckets.rows(len(whole))
        buckets = dataclasses.replace(self.buckets, min_packet=rows, soft_tokens=0)
        return build_packets(model, None, [whole], buckets) if whole else []

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        return Prepared(*end_to_end(stored))
