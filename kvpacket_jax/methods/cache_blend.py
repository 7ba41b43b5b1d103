"""CacheBlend (arXiv 2405.16444): tokens whose keys and values deviate most are recomputed."""

import dataclasses

import jax.numpy as jnp

from kvpacket_jax.methods.base import Method, Prepared
from kvpacket_jax.methods.recompute import (
    check_layers,
    check_ratio,
    choose,
    compose_with_room,
    finish,
    lay_out,
    row_bucket,
    run_rows,
    run_scored,
    scored,
)
from models import kv_cache


@dataclasses.dataclass(frozen=True)
class CacheBlend(Method):
    """`ratio` of the tokens after the first chunk, one set for all layers.

    All tokens go through the first layer, which gives their keys and values at the second in full
    context. Those replace the cached ones, and the tokens for which the two are furthest apart go
    on. (As published; there all tokens go through the rest of the second layer too, in vain.)
    """

    shares_context = True

    ratio: float = 0.15

    def __post_init__(self):
        check_ratio(self.ratio)

    def check(self, model) -> None:
        super().check(model)
        check_layers(1, 1, model.config)

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        layout = lay_out(model, request, new_tokens, self.buckets)
        all_rows = row_bucket(len(layout.ids) - layout.first, self.buckets)
        cache = compose_with_room(model, stored, layout, all_rows)
        ids = layout.padded_ids(layout.first, all_rows)
        return run_scored(_select_and_run, model, layout, cache, ids, self.ratio)


@scored
def _select_and_run(
    module,
    params,
    cache,
    ids_A,
    first,
    length,
    num_selected,
    num_query,
    rows: int,
    query_rows: int,
    tail_slots: int,
):
    transformer = module.bind({"params": params})
    positions = (first + jnp.arange(len(ids_A)))[None]
    valid = positions < length + num_query
    x = transformer.embed(ids_A[None])
    x, cache = transformer.run_layers(x, positions, valid, (), cache, first, range(1))
    old_k, old_v = cache.k[1], cache.v[1]
    _, k, v = transformer.qkv(x, positions, 1)
    cache = kv_cache.write_layer(cache, 1, k, v, first)
    scores = _distance(old_k, cache.k[1]) + _distance(old_v, cache.v[1])
    slots = choose(scores, first, length, num_selected, num_query, rows)
    x = jnp.take(x, slots - first, axis=1, mode="clip")
    x, cache = run_rows(transformer, cache, x, slots, range(1, module.config.num_layers))
    last = num_selected + num_query - 1
    return slots, scores, *finish(transformer, cache, x, last, length, query_rows, tail_slots)


def _distance(old_1xSxKxH, new_1xSxKxH):
    difference = new_1xSxKxH[0].astype(jnp.float32) - old_1xSxKxH[0].astype(jnp.float32)
    return jnp.sum(jnp.square(difference), axis=(1, 2))
