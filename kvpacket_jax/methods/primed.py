"""primed: documents cached after a few others that they attend to, laid side by side."""

import dataclasses

from kvpacket_jax.methods.kv_packet import KVPacket


@dataclasses.dataclass(frozen=True)
class Primed(KVPacket):
    """kv_packet with an adapter that is a primer alone, which needs no training.

    FusionRAG (arXiv 2601.12904) builds each chunk after those that are most like it; here one
    primer of unrelated documents serves them all.
    """

    adapter_role = "primer"
