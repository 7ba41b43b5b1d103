"""streaming: the first and the last tokens are kept (StreamingLLM, arXiv 2309.17453)."""

import dataclasses

import jax
import jax.numpy as jnp

from kvpacket_jax.compress.base import Compressor, Layer, Sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streaming(Compressor):
    """`sink` first tokens, the header's among them; the rest are the last ones.

    Keys keep their places in the document, where the paper counts places within the cache.
    """

    name = "streaming"

    sink: int = 4

    def scores(self, layer: Layer) -> jax.Array:
        B, S, K, _ = layer.documents.k.shape
        return jnp.broadcast_to(-layer.local_S.astype(jnp.float32), (B, K, S))

    def split(self, kept: int, header: int, trailer: int) -> Sizes:
        top = min(max(self.sink, header), kept - trailer)
        return Sizes(top, kept - top, 0)
