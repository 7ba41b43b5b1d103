"""rand_recompute: tokens drawn at random are recomputed: what any choice of tokens must beat."""

import dataclasses
import random

from kvpacket_jax.methods.base import Prepared, SharedMethod
from kvpacket_jax.methods.recompute import Recomputing, check_ratio, lay_out, recompute


@dataclasses.dataclass(frozen=True)
class RandRecompute(SharedMethod, Recomputing):
    """`ratio` of the tokens behind the first chunk; the same ones for a seed and a length."""

    ratio: float = 0.15
    seed: int = 0

    def __post_init__(self):
        check_ratio(self.ratio)

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        layout = lay_out(model, request, new_tokens)
        candidates = range(layout.first, layout.length)
        draw = random.Random(self.seed)
        return recompute(
            model, stored, layout, sorted(draw.sample(candidates, layout.share(self.ratio)))
        )
