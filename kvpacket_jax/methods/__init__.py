"""The methods, by name. One file each: what it stores, and how it prepares a request."""

from kvpacket_jax.methods.a3 import A3
from kvpacket_jax.methods.base import Method, Prepared, Request
from kvpacket_jax.methods.cache_blend import CacheBlend
from kvpacket_jax.methods.epic import Epic
from kvpacket_jax.methods.full_recompute import FullRecompute
from kvpacket_jax.methods.infoflow import InfoFlow
from kvpacket_jax.methods.kv_packet import KVPacket
from kvpacket_jax.methods.no_cache import NoCache
from kvpacket_jax.methods.no_recompute import NoRecompute
from kvpacket_jax.methods.primed import Primed
from kvpacket_jax.methods.rand_recompute import RandRecompute
from kvpacket_jax.methods.sam_kv import SamKV
from kvpacket_jax.methods.single_cache import SingleCache
from kvpacket_jax.methods.sink import Sink

METHODS: dict[str, type[Method]] = {
    "full_recompute": FullRecompute,
    "kv_packet": KVPacket,
    "primed": Primed,
    "no_recompute": NoRecompute,
    "cache_blend": CacheBlend,
    "epic": Epic,
    "a3": A3,
    "rand_recompute": RandRecompute,
    "sam_kv": SamKV,
    "infoflow": InfoFlow,
    "sink": Sink,
    "single_cache": SingleCache,
    "no_cache": NoCache,
}

# Raise it where a method of the same settings may answer otherwise: rows of two do not mix.
VERSION = 2

__all__ = ["METHODS", "VERSION", "Method", "Prepared", "Request"]
