"""no_recompute: bare caches moved to their positions, side by side, and nothing recomputed."""

import dataclasses

from kvpacket_jax.methods.kv_packet import KVPacket


@dataclasses.dataclass(frozen=True)
class NoRecompute(KVPacket):
    """kv_packet without an adapter."""

    adapter_role = None

    adapter: None = dataclasses.field(default=None, init=False)
    opening: bool = dataclasses.field(default=False, init=False)
