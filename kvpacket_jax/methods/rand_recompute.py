"""rand_recompute: tokens drawn at random are recomputed: what any choice of tokens must beat."""

import dataclasses
import random

from kvpacket_jax.methods.base import Method, Prepared
from kvpacket_jax.methods.recompute import check_ratio, lay_out, recompute
from models.identity import digest


@dataclasses.dataclass(frozen=True)
class RandRecompute(Method):
    """`ratio` of the tokens after the first chunk; the same ones for a seed and a length."""

    shares_context = True

    ratio: float = 0.15
    seed: int = 0

    def __post_init__(self):
        check_ratio(self.ratio)

    def reseeded(self, example_id: str) -> "RandRecompute":
        return dataclasses.replace(self, seed=int(digest([self.seed, example_id])[:8], 16))

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        layout = lay_out(model, request, new_tokens, self.buckets)
        candidates = range(layout.first, layout.length)
        draw = random.Random(self.seed)
        return recompute(
            model, stored, layout, sorted(draw.sample(candidates, layout.share(self.ratio)))
        )
