"""kvzip: what the model needs to repeat the document is kept (arXiv 2505.23416)."""

import dataclasses

import jax
import jax.numpy as jnp

from kvpacket_jax.compress.base import Compressor, Layer, received


@dataclasses.dataclass(frozen=True, kw_only=True)
class KVzip(Compressor):
    """The model is told to repeat the document; a key's score is the most attention it then gets.

    The first `sink` tokens are kept. Every head keeps the same number of tokens, where the
    published code shares its budget among heads and layers.
    """

    name = "kvzip"
    reads_again = True
    prompt = "\n\nRepeat the previous context exactly."

    sink: int = 4

    def scores(self, layer: Layer) -> jax.Array:
        return jnp.where(layer.local_S < self.sink, 1.0, received(layer))
