"""kvzip: what the model needs to repeat the document is kept (arXiv 2505.23416)."""

import dataclasses

import jax
import jax.numpy as jnp

from kvpacket_jax.compress.base import Compressor, Layer, received


@dataclasses.dataclass(frozen=True, kw_only=True)
class KVzip(Compressor):
    """The model is told to repeat the document; a key's score is the most attention it then gets.

    The first `sink` tokens are kept. The published code shares its budget among heads and layers,
    puts the chat's end between document and prompt, and repeats long documents in parts; here every
    head keeps the same number of tokens, and a document is repeated in one piece.
    """

    name = "kvzip"
    reads_again = True
    prompt = "\n\nRepeat the previous context exactly."

    sink: int = 4

    def scores(self, layer: Layer) -> jax.Array:
        return jnp.where(layer.local_S < self.sink, 1.0, received(layer))
