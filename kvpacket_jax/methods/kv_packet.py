"""KV Packet (arXiv 2604.13226): wrapped documents cached alone, laid side by side."""

import dataclasses

from kvpacket_jax.methods.base import Method, Prepared
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.compose import compose


@dataclasses.dataclass(frozen=True)
class KVPacket(Method):
    """`adapter` None caches the documents bare."""

    reads_packets = True
    adapter_role = "adapter"
    shares_context = True

    adapter: Adapter | None = None

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        context, length = compose(model, stored, self.buckets)
        return Prepared((context,), length)
