"""single_cache: preamble and documents read together offline, as one cache. Exact, not reusable."""

import dataclasses

from kvpacket_jax.methods.base import Method, Prepared
from kvpacket_jax.packet import Packet, build_packets


@dataclasses.dataclass(frozen=True)
class SingleCache(Method):
    def store(self, model, preamble, documents) -> list[Packet]:
        whole = [*preamble, *(t for document in documents for t in document)]
        return build_packets(model, None, [whole]) if whole else []

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        return Prepared(tuple(p.cache for p in stored), sum(p.length for p in stored))

    def shared_context(self, model, stored, request):
        return self.prepare(model, stored, request)[:2]
