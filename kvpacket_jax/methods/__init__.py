"""The methods, by name. One file each; each is a `store` and a `prepare`."""

from kvpacket_jax.methods.base import Method, Prepared, Request
from kvpacket_jax.methods.full_recompute import FullRecompute
from kvpacket_jax.methods.kv_packet import KVPacket
from kvpacket_jax.methods.no_cache import NoCache
from kvpacket_jax.methods.no_recompute import NoRecompute

METHODS: dict[str, type[Method]] = {
    "full_recompute": FullRecompute,
    "kv_packet": KVPacket,
    "no_recompute": NoRecompute,
    "no_cache": NoCache,
}

__all__ = ["METHODS", "Method", "Prepared", "Request"]
