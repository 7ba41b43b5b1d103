"""snapkv: what the last tokens attend to is kept (arXiv 2404.14469)."""

import dataclasses

import jax
import jax.numpy as jnp

from kvpacket_jax.compress.base import Compressor, Layer, Sizes, received


@dataclasses.dataclass(frozen=True, kw_only=True)
class SnapKV(Compressor):
    """The last `window` tokens, the trailer's among them, score the others and are kept.

    Here they are the document's own, for no question is known when a packet is built; a trailer of
    `window` soft tokens or more alone does the scoring. Scores are means over `kernel` neighbours,
    so that a token's surroundings stay with it. kvpress has a window of 64, the paper of 16 to 32:
    documents of packets are often no longer.
    """

    name = "snapkv"

    window: int = 8
    kernel: int = 5

    def __post_init__(self):
        super().__post_init__()
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(
                f"window is at least 1 and kernel odd; not {self.window} and {self.kernel}."
            )

    def scores(self, layer: Layer) -> jax.Array:
        S, W = layer.local_S, self.window
        # The window's rows alone, picked from each packet's end.
        at_BxW = layer.lengths_B[:, None] - W + jnp.arange(W)
        there, at_BxW = at_BxW >= 0, jnp.maximum(at_BxW, 0)
        window = layer._replace(
            q_BxTxNxH=jnp.take_along_axis(layer.q_BxTxNxH, at_BxW[..., None, None], axis=1),
            positions_BxT=jnp.take_along_axis(layer.positions_BxT, at_BxW, axis=1),
            rows_BxT=there,
        )
        groups = layer.config.num_heads // layer.config.num_kv_heads
        means = received(window, jnp.full(at_BxW.shape, 1 / (W * groups)))
        before = (layer.lengths_B - W)[:, None, None] > S
        side = self.kernel // 2
        padded = jnp.pad(jnp.where(before, means, 0), [(0, 0), (0, 0), (side, side)])
        return sum(padded[..., i : i + len(S)] for i in range(self.kernel)) / self.kernel

    def split(self, kept: int, header: int, trailer: int) -> Sizes:
        tail = max(trailer, min(self.window, kept - header))
        return Sizes(kept - tail, tail, 0)
