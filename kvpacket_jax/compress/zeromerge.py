"""zeromerge: the last and the best tokens are kept, all others merged (arXiv 2503.10714)."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from kvpacket_jax.compress.base import Compressor, Layer, Sizes, received


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroMerge(Compressor):
    """A slot of a mean has the weight of its tokens: `alpha` times its logarithm is its bias.

    Scores are the attention that a token gets from all later ones, `discount` for each step that
    these stand before the end. Attention with a bias is plain XLA's: over packets of these neither
    the paged kernel nor keys in blocks are used.
    """

    name = "zeromerge"

    tail: float = 0.1  # below 1 a share of the slots, else a number; at least 2
    # Below 1 a share of the slots without the tail, else a number: 1.0 is one slot.
    merged: float = 1.0  # the paper's residual
    alpha: float = 0.6  # ZSMerge's scale_factor
    discount: float = 0.98  # its shrink_factor

    def __post_init__(self):
        super().__post_init__()
        finite = all(map(math.isfinite, (self.tail, self.merged, self.alpha)))
        in_range = self.tail >= 0 and self.merged > 0 and self.alpha >= 0 and 0 < self.discount <= 1
        if not (finite and in_range):
            raise ValueError(
                "tail and alpha are 0 or more, merged is above 0, discount above 0 and up to 1, "
                f"all of them finite; not {self.tail}, {self.alpha}, {self.merged} and "
                f"{self.discount}."
            )
        for name in ("tail", "merged"):
            value = getattr(self, name)
            if value >= 1 and value != int(value):
                raise ValueError(f"{name} is a share below 1 or a whole number; not {value}.")

    def scores(self, layer: Layer) -> jax.Array:
        T = layer.positions_BxT.shape[1]
        steps = jnp.maximum(layer.lengths_B[:, None] - 1 - jnp.arange(T), 0)
        return received(layer, self.discount ** steps.astype(jnp.float32))

    def bias(self, weights_BxKxR: jax.Array) -> jax.Array:
        return self.alpha * jnp.log(jnp.maximum(weights_BxKxR, 1))

    def split(self, kept: int, header: int, trailer: int) -> Sizes:
        tail = int(self.tail * kept) if self.tail < 1 else int(self.tail)
        tail = max(trailer, min(max(2, tail), kept - header))
        free = kept - tail
        merged = int(free * self.merged) if self.merged < 1 else int(self.merged)
        merged = min(max(1, merged), free - header)
        return Sizes(free - merged, tail, merged)
