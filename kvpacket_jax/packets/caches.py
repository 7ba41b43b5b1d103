"""The caches that documents leave, as batch rows: what packets are made of. Pure functions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvpacket_jax.compress import Compressor, base
from kvpacket_jax.compress.base import Layer, watched
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets import distiller as distiller_lib
from kvpacket_jax.packets.adapter import Adapter
from models import kv_cache
from models.kv_cache import KVCache


def primer_cache(module, params, primer: jax.Array | None, length=None) -> KVCache | None:
    """What documents attend to while they are built: the frozen model's cache of the primer.

    Args:
      primer: an adapter's, token ids int32 `[p]` or embeddings float32 `[p, D]`.
      length: int32 scalar, how many come before the padding; all of them if None.

    Returns:
      A KVCache with batch 1 and p slots, the first `length` valid; None without a primer.
    """
    if primer is None:
        return None
    bound = module.bind({"params": params})
    x = primer if primer.ndim == 2 else bound.embed(primer)
    positions = jnp.arange(len(primer))[None]
    cache = kv_cache.init(module.config, 1, len(primer), params["embedding"].dtype)
    valid = positions < (len(primer) if length is None else length)
    return bound.run_layers(x[None], positions, valid, (), cache, 0)[1]


def packet_caches(
    module, params, adapter: Adapter, ids_BxT, lengths_B, primer: KVCache | None = None
) -> KVCache:
    """The caches of documents as batch rows: each sees only itself and the primer.

    A document runs after the primer, through the writer's matrices; then its keys are moved back
    to the positions from 0 on. Pure and differentiable in `adapter`; training calls this function.

    Args:
      ids_BxT: int32, padded; lengths_B: int32, true lengths before wrapping.
      primer: `primer_cache` of the adapter's primer.

    Returns:
      A KVCache with batch B and h + T + t slots.
    """
    writer, rows = _document_rows(module, params, adapter, ids_BxT, lengths_B, primer)
    return _moved_back(module.config, writer.run_layers(*rows, 0)[1], primer)


def _document_rows(module, params, adapter: Adapter, ids_BxT, lengths_B, primer: KVCache | None):
    """The model that writes packets, and the first arguments of its `run_layers`."""
    writer = module.bind({"params": adapter_lib.writing_params(params, adapter)})
    x = adapter_lib.wrap(adapter, writer.embed(ids_BxT), lengths_B)
    B, T, _ = x.shape
    local = jnp.broadcast_to(jnp.arange(T), (B, T))
    valid = local < (lengths_B + adapter.num_tokens)[:, None]
    cache = kv_cache.init(module.config, B, T, params["embedding"].dtype)
    positions = local if primer is None else _end(primer) + local
    return writer, (x, positions, valid, () if primer is None else (primer,), cache)


class Distilled(NamedTuple):
    """What a distiller makes of documents."""

    cache: KVCache  # of all slots, `packet_caches`'
    scores: jax.Array  # float32 [B, T], higher for what is kept
    kept: jax.Array  # bool [B, T]


def distilled_caches(
    module, params, adapter: Adapter, ids_BxT, lengths_B, primer: KVCache | None, top_B: jax.Array
) -> Distilled:
    """`packet_caches` where the `top_B` best slots of each document are to be kept.

    All rows run and see each other; from the layers on whose outputs are scored, those that are
    kept have the distiller's changes beside the writer's. Differentiable but for the choice.
    """
    distiller, wrapped_B = adapter.distiller, lengths_B + adapter.num_tokens
    writer, rows = _document_rows(module, params, adapter, ids_BxT, lengths_B, primer)
    x, positions, valid, context, cache = rows
    first = distiller_lib.first_layers(module.config)
    x, cache = writer.run_layers(*rows, 0, first)
    # At least 1: an absent document is none of the loss, and must be none of its gradients.
    scores = distiller_lib.scores(distiller, x, top_B / jnp.maximum(wrapped_B, 1))
    soft = base.soft_slots(x.shape[1], *adapter.ends, wrapped_B)
    kept = base.best(jnp.where(soft, jnp.inf, scores), valid, top_B[:, None])
    changed = module.bind({"params": adapter_lib.writing_params(params, adapter, kept)})
    later = range(first.stop, module.config.num_layers)
    _, cache = changed.run_layers(x, positions, valid, context, cache, 0, later)
    return Distilled(_moved_back(module.config, cache, primer), scores, kept)


def _end(primer: KVCache) -> jax.Array:
    return jnp.sum(primer.valid[0], dtype=jnp.int32)


def _moved_back(config, cache: KVCache, primer: KVCache | None) -> KVCache:
    return cache if primer is None else kv_cache.move(config, cache, -_end(primer))


def scored_caches(
    module,
    params,
    adapter: Adapter,
    ids_BxT,
    lengths_B,
    primer: KVCache | None,
    compressor: Compressor,
    prompt: np.ndarray,
    top_B: np.ndarray,
) -> tuple[KVCache, list[jax.Array]]:
    """`packet_caches`, and the scores that `compressor.reduce` makes them smaller by.

    The model runs once, or twice for a compressor that reads again.

    Args:
      prompt: token ids `[p]` of the compressor's prompt.
      top_B: how many slots of each packet the best scores decide on; a distiller is told.

    Returns:
      A KVCache with batch B and S = h + T + t slots, and L arrays float32 `[B, K, S]`.
    """
    config, wrapped_B = module.config, lengths_B + adapter.num_tokens
    given = module, params, adapter, ids_BxT, lengths_B, primer

    def watch(positions, valid, scored: int):
        return lambda q, segments: compressor.scores(
            Layer(config, q, positions, valid, segments, scored, wrapped_B)
        )

    if compressor.learned:
        distilled = distilled_caches(*given, top_B)
        B, T = distilled.scores.shape
        each = jnp.broadcast_to(distilled.scores[:, None], (B, config.num_kv_heads, T))
        return distilled.cache, [each] * config.num_layers
    if compressor.reads_again:
        cache = packet_caches(*given)
        ids = jnp.concatenate([jnp.broadcast_to(prompt, (len(ids_BxT), len(prompt))), ids_BxT], 1)
        reader, after = module.bind({"params": params}), jnp.arange(ids.shape[1])
        positions = wrapped_B[:, None] + after
        valid = after < (lengths_B + len(prompt))[:, None]
        tail = kv_cache.init(config, *ids.shape, cache.dtype)
        rows = reader.embed(ids), positions, valid, (cache,), tail
        return cache, watched(reader, *rows, watch(positions, valid, 0))[1]
    writer, rows = _document_rows(*given)
    scored = 0 if primer is None else 1
    cache, scores = watched(writer, *rows, watch(rows[1], rows[2], scored))
    return _moved_back(config, cache, primer), scores
