"""no_cache: the query behind the preamble alone. What the model knows without the documents."""

import dataclasses

from kvpacket_jax.methods.base import Prepared, SharedMethod, end_to_end, store_preamble
from kvpacket_jax.packets.packet import Packet


@dataclasses.dataclass(frozen=True)
class NoCache(SharedMethod):
    def store(self, model, preamble, documents) -> list[Packet]:
        return store_preamble(model, preamble)

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        return Prepared(*end_to_end(stored))
