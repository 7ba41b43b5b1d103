"""Adapter: the trained soft tokens that wrap every document."""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Adapter(NamedTuple):
    """One pair for all documents, float32."""

    header: jax.Array  # [h, D], before the document
    trailer: jax.Array  # [t, D], behind it

    @property
    def num_tokens(self) -> int:
        return self.header.shape[0] + self.trailer.shape[0]


def init(key: jax.Array, embedding: jax.Array, header: int = 8, trailer: int = 8) -> Adapter:
    """Soft tokens from a normal with the embedding table's scalar mean and standard deviation.

    Args:
      embedding: the table `[V, D]`.
      header, trailer: numbers of tokens.
    """
    table = np.asarray(embedding, np.float32)
    mean, std = float(table.mean()), float(table.std(ddof=1))
    tokens = mean + std * jax.random.normal(key, (header + trailer, table.shape[1]), jnp.float32)
    return Adapter(tokens[:header], tokens[header:])


def empty(dim: int) -> Adapter:
    """No soft tokens: bare documents take the same path as wrapped ones."""
    return Adapter(jnp.zeros((0, dim)), jnp.zeros((0, dim)))


def fingerprint(adapter: Adapter | None) -> str:
    """SHA-256 over shapes and float32 bytes; "none" without an adapter."""
    if adapter is None:
        return "none"
    digest = hashlib.sha256()
    for part in adapter:
        array = np.asarray(part, "<f4")
        digest.update(str(array.shape).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def wrap(adapter: Adapter, x_BxTxD: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """header + document + trailer, the trailer directly behind each document's own length.

    Args:
      x_BxTxD: the documents' embeddings, padded.
      lengths_B: int32, true lengths.

    Returns:
      `[B, h + T + t, D]`; what follows the trailer is padding.
    """
    B, T, D = x_BxTxD.shape
    h, t = adapter.header.shape[0], adapter.trailer.shape[0]
    header = jnp.broadcast_to(adapter.header, (B, h, D))
    body = jnp.concatenate([header, x_BxTxD, jnp.zeros((B, t, D), x_BxTxD.dtype)], axis=1)
    if t == 0:
        return body
    place = jnp.arange(h + T + t) - h - lengths_B[:, None]  # 0 at the trailer's first token
    trailer = adapter.trailer[jnp.clip(place, 0, t - 1)]
    return jnp.where(((place >= 0) & (place < t))[..., None], trailer, body)
