"""KV Packet (arXiv 2604.13226): wrapped documents cached alone, laid side by side."""

import dataclasses

from kvpacket_jax.methods.base import Prepared, SharedMethod, store_preamble
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.compose import compose
from kvpacket_jax.packets.packet import Packet, build_packets


@dataclasses.dataclass(frozen=True)
class KVPacket(SharedMethod):
    """`adapter` None caches the documents bare."""

    adapter: Adapter | None = None

    def store(self, model, preamble, documents) -> list[Packet]:
        return store_preamble(model, preamble) + build_packets(model, self.adapter, documents)

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        context, length = compose(model, stored)
        return Prepared((context,), length)
