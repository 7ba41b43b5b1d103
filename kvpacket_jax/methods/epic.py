"""EPIC (arXiv 2410.15332): the first tokens of every document are recomputed in full context."""

import dataclasses

from kvpacket_jax.methods.base import Method, Prepared
from kvpacket_jax.methods.recompute import lay_out, recompute


@dataclasses.dataclass(frozen=True)
class Epic(Method):
    """`tokens` of each document; none of the first chunk."""

    shares_context = True

    tokens: int = 16

    def __post_init__(self):
        if self.tokens < 0:
            raise ValueError(f"tokens is how many of each document; found {self.tokens}.")

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        layout = lay_out(model, request, new_tokens, self.buckets)
        selected = [t for chunk in layout.chunks[1:] for t in chunk[: self.tokens]]
        return recompute(model, stored, layout, selected)
