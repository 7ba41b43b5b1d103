"""no_cache: the query after the preamble alone. What the model knows without the documents."""

import dataclasses

from kvpacket_jax.methods.base import Method, Prepared, end_to_end, store_preamble
from kvpacket_jax.packets.packet import Packet


@dataclasses.dataclass(frozen=True)
class NoCache(Method):
    """Stores the preamble only."""

    shares_context = True

    @property
    def recipe(self):
        return store_preamble, self.buckets

    def build(self, model, preamble, documents) -> list[Packet]:
        return store_preamble(model, preamble, self.buckets)

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        return Prepared(*end_to_end(stored))
