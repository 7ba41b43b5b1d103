"""no_cache: the query after the preamble alone. What the model knows without the documents."""

import dataclasses

from kvpacket_jax.methods.base import Method, Prepared, build_preamble, end_to_end


@dataclasses.dataclass(frozen=True)
class NoCache(Method):
    """Stores the preamble only."""

    shares_context = True
    build_orders = build_preamble

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        return Prepared(*end_to_end(stored))
