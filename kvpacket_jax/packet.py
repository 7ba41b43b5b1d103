"""Packet: the KV cache of one wrapped document at local positions; build_packets makes them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kvpacket_jax import adapter as adapter_lib
from kvpacket_jax.adapter import Adapter
from kvpacket_jax.buckets import Buckets, power_of_two
from models import LanguageModel, kv_cache
from models.kv_cache import KVCache

BATCH_TOKENS = 2048  # rows computed at once; enough to fill a CPU and a small GPU


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What made a packet. It is read only by the model that made it, in the same dtype."""

    model: str  # fingerprint
    adapter: str  # fingerprint, or "none"
    dtype: str
    tokens: tuple[int, ...]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["cache"], meta_fields=["length", "manifest"]
)
@dataclasses.dataclass(frozen=True)
class Packet:
    """Immutable, and it knows nothing of its neighbours.

    `cache` has batch 1 and a bucket of slots, the first `length` of them valid, at positions
    0 … length - 1.
    """

    cache: KVCache
    length: int
    manifest: Manifest


def packet_caches(module, params, adapter: Adapter, ids_BxT, lengths_B) -> KVCache:
    """The caches of documents as batch rows: each is run alone, and sees only itself.

    Pure and differentiable in `adapter`; training calls this same function.

    Args:
      ids_BxT: int32, padded; lengths_B: int32, true lengths before wrapping.

    Returns:
      A KVCache with batch B and h + T + t slots.
    """
    apply = functools.partial(module.apply, {"params": params})
    x = adapter_lib.wrap(adapter, apply(ids_BxT, method="embed"), lengths_B)
    B, T, _ = x.shape
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    valid = positions < (lengths_B + adapter.num_tokens)[:, None]
    cache = kv_cache.init(module.config, B, T, params["embedding"].dtype)
    return apply(x, positions, valid, (), cache, 0, method="run_layers")[1]


@functools.partial(jax.jit, static_argnames=("module", "slots"))
def _build(module, params, adapter, ids_BxT, lengths_B, slots: int) -> list[KVCache]:
    caches = packet_caches(module, params, adapter, ids_BxT, lengths_B)
    caches = kv_cache.resize(caches, slots)
    return [kv_cache.row(caches, i) for i in range(ids_BxT.shape[0])]


def build_packets(
    model: LanguageModel,
    adapter: Adapter | None,
    documents: Sequence[Sequence[int]],
    buckets: Buckets = Buckets(),
    on_packet: Callable[[int], None] = lambda done: None,
) -> list[Packet]:
    """Runs each document alone and keeps its cache.

    Args:
      adapter: wraps every document; None leaves them bare (the preamble is built so).
      documents: token ids of each, tokenised alone, without special tokens.
      on_packet: called with the number of packets just made, for progress.

    Raises:
      ValueError: an empty document, ids outside the vocabulary, a document longer than the
        model's context, an adapter of another width; before anything is computed.
    """
    wrapper = adapter if adapter is not None else adapter_lib.empty(model.config.dim)
    _check(model, wrapper, documents)
    maker = adapter_lib.fingerprint(adapter)
    extra = wrapper.num_tokens
    groups: dict[int, list[int]] = {}
    for i, ids in enumerate(documents):
        groups.setdefault(buckets.build(len(ids) + extra), []).append(i)
    packets: list[Packet | None] = [None] * len(documents)
    for rows, members in sorted(groups.items()):
        # A power of two, as batches are padded to.
        batch = 1 << max(0, (BATCH_TOKENS // rows).bit_length() - 1)
        for at in range(0, len(members), batch):
            chosen = members[at : at + batch]
            ids = np.zeros((power_of_two(len(chosen), 1), rows - extra), np.int32)
            lengths = np.ones(len(ids), np.int32)
            for r, i in enumerate(chosen):
                lengths[r] = len(documents[i])
                ids[r, : lengths[r]] = documents[i]
            slots = buckets.packet(rows)
            caches = _build(model.module, model.params, wrapper, ids, lengths, slots)
            for i, cache in zip(chosen, caches, strict=False):
                manifest = Manifest(
                    model.fingerprint, maker, str(jnp.dtype(model.dtype)), tuple(documents[i])
                )
                packets[i] = Packet(cache, len(documents[i]) + extra, manifest)
            jax.block_until_ready(caches)
            on_packet(len(chosen))
    return packets


def check_ids(model: LanguageModel, ids: Sequence[int], what: str) -> None:
    """Raises ValueError for an empty sequence or ids outside the vocabulary."""
    if len(ids) == 0:
        raise ValueError(f"{what} is empty: there is nothing to run through the model.")
    low, high = min(ids), max(ids)
    if low < 0 or high >= model.config.vocab_size:
        raise ValueError(
            f"{what} has token id {low if low < 0 else high}; the vocabulary of {model.name} ends "
            f"at {model.config.vocab_size - 1}. Was it tokenised for another model?"
        )


def _check(model: LanguageModel, adapter: Adapter, documents) -> None:
    widths = {part.shape[-1] for part in adapter}
    if widths != {model.config.dim}:
        raise ValueError(
            f"The adapter's tokens have {', '.join(map(str, sorted(widths)))} numbers, embeddings "
            f"of {model.name} have {model.config.dim}: it was trained for another model."
        )
    for i, ids in enumerate(documents):
        check_ids(model, ids, f"Document {i}")
        model.check_length(len(ids) + adapter.num_tokens)
