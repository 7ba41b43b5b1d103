"""knorm: the keys of the smallest norm are kept (arXiv 2406.11430)."""

import dataclasses

import jax
import jax.numpy as jnp

from kvpacket_jax.compress.base import Compressor, Layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class KNorm(Compressor):
    """Keys of small norm tend to be attended to most."""

    name = "knorm"

    def scores(self, layer: Layer) -> jax.Array:
        norms_BxSxK = jnp.linalg.norm(layer.documents.k.astype(jnp.float32), axis=-1)
        return -jnp.swapaxes(norms_BxSxK, 1, 2)
