"""no_recompute: bare caches moved to their places, side by side; nothing mends what is missing."""

import dataclasses

from kvpacket_jax.methods.kv_packet import KVPacket


@dataclasses.dataclass(frozen=True)
class NoRecompute(KVPacket):
    """kv_packet without an adapter."""

    adapter: None = dataclasses.field(default=None, init=False)
