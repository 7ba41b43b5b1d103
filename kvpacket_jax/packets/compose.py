"""compose(): packets side by side, in any order, copied into one cache with their keys moved.

What the methods need that recompute some of it, and training; kv_packet reads packets where they
lie (pages.py), and tests hold the two to each other.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.packet import Packet
from models import LanguageModel, kv_cache
from models.kv_cache import KVCache


def place(config, context: KVCache, packet: KVCache, position, slot) -> KVCache:
    """One packet's keys moved by `position`, written at `slot` and following (int32 scalars).

    The packet's padding is written too; the next packet overwrites it. The caller sees to it that
    slot + the packet's slots fit the context: XLA would move the start otherwise.
    """
    return kv_cache.write(context, kv_cache.move(config, packet, position), slot)


@functools.partial(jax.jit, static_argnames=("config", "slots", "dtype", "bias"))
def _empty(config, slots: int, dtype, bias: bool) -> KVCache:
    return kv_cache.init(config, 1, slots, dtype, bias)


_place = functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("context",))(
    place
)


def context_slots(packets: Sequence[Packet], buckets: Buckets = Buckets()) -> int:
    """Slots of the buffer that holds these packets, the last one's padding included."""
    return buckets.context(slots_needed(packets))


def slots_needed(packets: Sequence[Packet]) -> int:
    """The fewest slots that hold these packets and their padding."""
    offset, need = 0, 1
    for packet in packets:
        need = max(need, offset + packet.cache.num_slots)
        offset += packet.slots
    return need


def compose(
    model: LanguageModel,
    packets: Sequence[Packet],
    buckets: Buckets = Buckets(),
    slots: int | None = None,
) -> tuple[KVCache, int]:
    """Lays packets side by side; a preamble is simply the first.

    A compressed packet takes fewer slots than positions.

    Args:
      slots: of the buffer; a bucket if None.

    Returns:
      The context (batch 1) and its length: the position of what comes next.

    Raises:
      ValueError: packets of another model or dtype, a context longer than the model's, or fewer
        slots than `slots_needed`.
    """
    check_packets(model, packets)
    slots = context_slots(packets, buckets) if slots is None else slots
    if slots < (needed := slots_needed(packets)):  # XLA would move the last over the one before
        raise ValueError(f"{slots} slots do not hold these packets: they need {needed}.")
    bias = any(packet.cache.bias is not None for packet in packets)
    context = _empty(model.config, slots, model.dtype, bias)
    position = slot = 0
    for packet in packets:
        # Of numpy: a host scalar of jax is an eager operation.
        at = np.int32(position), np.int32(slot)
        context = _place(model.config, context, packet.cache, *at)
        position, slot = position + packet.length, slot + packet.slots
    return context, position


def check_packets(model: LanguageModel, packets: Sequence[Packet]) -> None:
    """Raises ValueError for packets that `model` did not build or that are too many for it."""
    for i, packet in enumerate(packets):
        _check(model, packet, i)
    model.check_length(sum(p.length for p in packets))


def _check(model: LanguageModel, packet: Packet, i: int) -> None:
    for field, actual, expected in (
        ("model", packet.manifest.model, model.fingerprint),
        ("dtype", packet.manifest.dtype, str(jnp.dtype(model.dtype))),
    ):
        if actual != expected:
            raise ValueError(
                f"Packet {i} was built with another {field}: {actual[:16]}, not {expected[:16]} of "
                f"{model.name}. Its keys would be read as something they are not: build it again."
            )
