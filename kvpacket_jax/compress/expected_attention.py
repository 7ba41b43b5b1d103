"""expected_attention: what later queries should attend to is kept (arXiv 2510.00636)."""

import dataclasses

import jax
import jax.numpy as jnp

from kvpacket_jax.compress.base import Compressor, Layer
from models import rope
from models.precision import product


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedAttention(Compressor):
    """Later queries are taken to be normal, with the mean and covariance of the document's own, the
    adapter's soft tokens among them.

    They are rotated by the mean of the rotations to the next `future` positions; the expectation of
    exp(q k) is then exp(mean k + k covariance k / 2). Scores are its softmax over keys, the mean
    over query heads, times the norm of the value. The first `sink` tokens are kept, and left out of
    all this, for they are unlike the rest.
    """

    name = "expected_attention"

    future: int = 512
    sink: int = 4

    def __post_init__(self):
        super().__post_init__()
        if self.future < 1:
            raise ValueError(f"future is a number of positions, 1 or more; not {self.future}.")

    def scores(self, layer: Layer) -> jax.Array:
        c, documents = layer.config, layer.documents
        B, T, N, H = layer.q_BxTxNxH.shape
        K = documents.k.shape[2]
        turned = rope.move(c, layer.q_BxTxNxH, -layer.positions_BxT[..., None])
        q = turned.reshape(B, T, K, N // K, H)
        share = layer.rows_BxT & (jnp.arange(T) >= self.sink)
        share = share / jnp.maximum(share.sum(1, keepdims=True), 1)
        mean = product("BTKGH,BT->BKGH", q, share)
        apart = q - mean[:, None]
        covariance = product("BTKGH,BTKGI->BKGHI", apart * share[:, :, None, None, None], apart)
        # The rotation of the mean and the covariance, undone on the keys instead.
        ahead = layer.positions_BxT[:, :1] + layer.lengths_B[:, None] + jnp.arange(self.future)
        angles = rope.cos_sin(c.rope, c.head_dim, ahead, c.max_positions + self.future)
        cos, sin = (part.mean(1)[:, None, None] for part in angles)
        k = rope.rotate(documents.k, cos, -sin)
        spread = product("BKGHI,BSKI->BKGSH", covariance, k)
        logits = product("BKGH,BSKH->BKGS", mean, k) / H**0.5
        logits += product("BKGSH,BSKH->BKGS", spread, k) / (2 * H)
        counted = (layer.seen_BxS & (layer.local_S >= self.sink))[:, None]
        shares = jax.nn.softmax(jnp.where(counted[:, None], logits, -jnp.inf), axis=-1).mean(2)
        norms = jnp.linalg.norm(documents.v.astype(jnp.float32), axis=-1)
        scores = jnp.where(counted, shares * jnp.swapaxes(norms, 1, 2), -jnp.inf)
        return jnp.where(layer.local_S < self.sink, jnp.finfo(jnp.float32).max, scores)
