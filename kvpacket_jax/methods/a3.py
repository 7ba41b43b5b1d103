"""A3 (arXiv 2511.17560): tokens that the query attends to at the first layer are recomputed."""

import dataclasses

import jax.numpy as jnp

from kvpacket_jax.methods.base import Method, Prepared
from kvpacket_jax.methods.recompute import (
    check_ratio,
    choose,
    compose_with_room,
    finish,
    lay_out,
    run_rows,
    run_scored,
    scored,
)
from models import attention
from models.attention import Segment


@dataclasses.dataclass(frozen=True)
class A3(Method):
    """`ratio` of the tokens after the first chunk.

    The published code runs all of them through the first layer. That gives the same: keys and
    values there do not depend on the context, so the cached ones are what the query is scored
    against, and only the chosen rows go through the layer.
    """

    ratio: float = 0.15

    def __post_init__(self):
        check_ratio(self.ratio)

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        layout = lay_out(model, request, new_tokens, self.buckets)
        cache = compose_with_room(model, stored, layout)
        ids = layout.padded_ids(0, cache.num_slots)
        return run_scored(_select_and_run, model, layout, cache, ids, self.ratio)


@scored
def _select_and_run(
    module,
    params,
    cache,
    ids_S,
    first,
    length,
    num_selected,
    num_query,
    rows: int,
    query_rows: int,
    tail_slots: int,
):
    transformer = module.bind({"params": params})
    query = length + jnp.arange(query_rows)
    q, _, _ = transformer.qkv(transformer.embed(ids_S[query][None]), query[None], 0)
    candidates = cache.valid & (jnp.arange(cache.num_slots) >= first)
    segment = Segment(cache.k[0], cache.v[0], cache.positions, candidates)
    weights_TxNxS = attention.weights(q, query[None], [segment])[0]
    real = jnp.arange(query_rows) < num_query
    scores = jnp.sum(weights_TxNxS * real[:, None, None], axis=(0, 1))
    slots = choose(scores, first, length, num_selected, num_query, rows)
    x = transformer.embed(jnp.take(ids_S, slots, mode="clip")[None])
    x, cache = run_rows(transformer, cache, x, slots)
    last = num_selected + num_query - 1
    return slots, scores, *finish(transformer, cache, x, last, length, query_rows, tail_slots)
