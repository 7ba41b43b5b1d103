"""Packets laid into the pages of a pool, where requests read them: nothing is copied or moved."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from kvpacket_jax.packets.buckets import Buckets, round_up
from kvpacket_jax.packets.compose import check_packets
from kvpacket_jax.packets.packet import Packet
from models import LanguageModel, kv_cache
from models.kv_cache import KVCache
from models.paged import Paged

PAGE = 16  # slots; a page holds no other packet's, and what a packet leaves of its last is padding


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
        table = np.full(self.pool.batch, -1, np.int32)
        starts = np.zeros(self.pool.batch, np.int32)
        first = start = 0
        for slots, length in zip(self.slots, self.lengths, strict=True):
            count = _pages(slots)
            table[first : first + count] = np.arange(first, first + count)
            starts[first : first + count] = start
            first, start = first + count, start + length
        return Paged(self.pool, table, starts)


def lay(model: LanguageModel, packets: Sequence[Packet], buckets: Buckets = Buckets()) -> Laid:
    """Copies packets into a fresh pool, once for all requests that read them.

    Raises ValueError for packets of another model or dtype, or together longer than its context.
    """
    check_packets(model, packets)
    first, need = 0, 1
    for packet in packets:
        need = max(need, first + _pages(packet.cache.num_slots))
        first += _pages(packet.slots)
    pages = round_up(buckets.context(need * PAGE), PAGE) // PAGE
    bias = any(packet.cache.bias is not None for packet in packets)
    pool = _empty(model.config, pages, model.dtype, bias)
    first = 0
    for packet in packets:
        pool = _put(pool, packet.cache, np.int32(first))
        first += _pages(packet.slots)
    return Laid(pool, tuple(p.slots for p in packets), tuple(p.length for p in packets))


def _pages(slots: int) -> int:
    return -(-slots // PAGE)


@functools.partial(jax.jit, static_argnames=("config", "pages", "dtype", "bias"))
def _empty(config, pages: int, dtype, bias: bool) -> KVCache:
    pool = kv_cache.init(config, pages, PAGE, dtype)
    return kv_cache.with_bias(pool) if bias else pool


@functools.partial(jax.jit, donate_argnames=("pool",))
def _put(pool: KVCache, packet: KVCache, first) -> KVCache:
    """Writes a packet's slots into the pages from `first` on; its padding too, as `place` does."""
    whole = kv_cache.resize(packet, round_up(packet.num_slots, PAGE))
    return kv_cache.write_rows(pool, kv_cache.as_rows(whole, PAGE), first)
