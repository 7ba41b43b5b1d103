"""Packets copied once into the pages of a pool, where all requests over them read them."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np

from kvpacket_jax.packets.buckets import Buckets, round_up
from kvpacket_jax.packets.compose import check_packets
from kvpacket_jax.packets.packet import Packet
from models import LanguageModel, kv_cache
from models.kv_cache import KVCache
from models.paged import Paged

PAGE = 16  # slots; a page belongs to one packet, and its unused slots are padding


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["pool"], meta_fields=["slots", "lengths"]
)
@dataclasses.dataclass(frozen=True)
class Laid:
    """Packets in a pool of their own, one after the other from its first page on."""

    pool: KVCache
    slots: tuple[int, ...]  # that each packet stores
    lengths: tuple[int, ...]  # positions that each spans

    @property
    def length(self) -> int:
        """Positions of all together: the position of what comes next."""
        return sum(self.lengths)

    def context(self) -> Paged:
        """The packets side by side, in their order, as the context of a request."""
        counts = np.array([_pages(n) for n in self.slots], np.int32)
        lengths = np.array(self.lengths, np.int32)
        starts = np.zeros(self.pool.batch, np.int32)
        starts[: counts.sum()] = np.repeat(np.cumsum(lengths) - lengths, counts)
        return Paged(self.pool, None, starts)


def lay(model: LanguageModel, packets: Sequence[Packet], buckets: Buckets = Buckets()) -> Laid:
    """Copies packets into a fresh pool, once for all requests that read them.

    Raises ValueError for packets of another model or dtype, or together longer than its context.
    """
    check_packets(model, packets)
    firsts = [0, *itertools.accumulate(_pages(packet.slots) for packet in packets)]
    ends = [n + _pages(p.cache.num_slots) for n, p in zip(firsts, packets, strict=False)]
    pages = _pages(buckets.context(max(ends, default=1) * PAGE))
    bias = any(packet.cache.bias is not None for packet in packets)
    pool = _empty(model.config, pages, model.dtype, bias)
    for first, packet in zip(firsts, packets, strict=False):
        pool = _put(pool, packet.cache, np.int32(first))
    return Laid(pool, tuple(p.slots for p in packets), tuple(p.length for p in packets))


def _pages(slots: int) -> int:
    return -(-slots // PAGE)


@functools.partial(jax.jit, static_argnames=("config", "pages", "dtype", "bias"))
def _empty(config, pages: int, dtype, bias: bool) -> KVCache:
    return kv_cache.init(config, pages, PAGE, dtype, bias)


@functools.partial(jax.jit, donate_argnames=("pool",))
def _put(pool: KVCache, packet: KVCache, first) -> KVCache:
    """Writes a packet's slots into the pages from `first` on; its padding too, as `place` does."""
    whole = kv_cache.resize(packet, round_up(packet.num_slots, PAGE))
    return kv_cache.write_rows(pool, kv_cache.as_rows(whole, PAGE), first)
