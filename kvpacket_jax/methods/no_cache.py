"""no_cache: the query behind the preamble alone. What the model knows without the documents."""

import dataclasses

from kvpacket_jax.methods.base import Method, Prepared, store_preamble
from kvpacket_jax.packet import Packet


@dataclasses.dataclass(frozen=True)
class NoCache(Method):
    def store(self, model, preamble, documents) -> list[Packet]:
        return store_preamble(model, preamble)

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        return Prepared(tuple(p.cache for p in stored), sum(p.length for p in stored))

    def shared_context(self, model, stored, request):
        return self.prepare(model, stored, request)[:2]
