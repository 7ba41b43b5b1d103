"""single_cache: preamble and documents read together offline, as one cache. Exact, not reusable."""

import dataclasses

from kvpacket_jax.methods.base import Prepared, SharedMethod, end_to_end
from kvpacket_jax.packets.buckets import Buckets, bucket
from kvpacket_jax.packets.packet import Packet, build_packets


@dataclasses.dataclass(frozen=True)
class SingleCache(SharedMethod):
    def store(self, model, preamble, documents) -> list[Packet]:
        whole = [*preamble, *(t for document in documents for t in document)]
        # Padded as little as full_recompute's pass: it is the bound of what a cache can do.
        fitting = Buckets(min_packet=bucket(len(whole)), soft_tokens=0)
        return build_packets(model, None, [whole], fitting) if whole else []

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        return Prepared(*end_to_end(stored))
