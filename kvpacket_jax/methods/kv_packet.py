"""KV Packet (arXiv 2604.13226): wrapped documents cached alone, laid side by side."""

import dataclasses
import functools

from kvpacket_jax.compress import Compressor, make
from kvpacket_jax.methods.base import Method, Prepared
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.pages import Laid, lay


@dataclasses.dataclass(frozen=True)
class KVPacket(Method):
    """`adapter` None caches the documents bare.

    compress: what makes the packets smaller, "snapkv" or with settings "snapkv/window=16/kernel=3".
    keep: the share of their slots that stays; the compressor's own if None.
    opening: the document that comes first has another packet, built after the preamble: exactly
      what the full context has of it. So each document is stored twice, for it may come first.
      False is the paper's method. Bare documents have no such packet.
    """

    reads_packets = True
    adapter_role = "adapter"
    shares_context = True

    adapter: Adapter | None = None
    compress: str | None = None
    keep: float | None = None
    opening: bool = True

    def __post_init__(self):
        make(self.compress, self.keep)  # raises for what is no compressor

    @functools.cached_property
    def compressor(self) -> Compressor | None:
        return make(self.compress, self.keep)

    def arrange(self, model, packets) -> Laid:
        return lay(model, packets, self.buckets)

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        return Prepared((stored.context(),), stored.length)
