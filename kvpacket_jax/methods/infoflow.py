"""InfoFlow KV (arXiv 2603.05353): the tokens that the query attends to are recomputed."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvpacket_jax.methods.base import Method, Prepared
from kvpacket_jax.methods.recompute import (
    Layout,
    check_layers,
    check_lengths,
    check_ratio,
    choose,
    compose_with_room,
    lay_out,
    qkv_at_layers,
    row_bucket,
    run_rows,
    side_by_side,
)
from kvpacket_jax.packets.buckets import power_of_two
from kvpacket_jax.packets.packet import Packet, build_packets
from models import attention, kv_cache, rope
from models.attention import Segment
from models.kv_cache import KVCache
from models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class InfoFlow(Method):
    """`ratio` of all tokens, one at least, none of the first chunk. The query is not in that pass.

    first_layer, num_layers: the layers whose attention scores the tokens. None: the first is 22/36
      of the way up.
    leading, trailing: tokens at the query's ends that are the template's and do not score.
    reorder: documents are cached after the preamble, and ordered by how much of each the query
      would choose, the most nearest to it. They are first scored where they were cached, all
      right after the preamble, so that no document gains by its place.
    published: as the published code does it, where question tokens attend to later ones when they
      score, and where with `reorder` tokens are chosen that are exact as they are: those of the
      preamble and of the document after it.
    """

    ratio: float = 0.15
    first_layer: int | None = None
    num_layers: int = 4
    leading: int = 0
    trailing: int = 0
    reorder: bool = False
    published: bool = False

    def __post_init__(self):
        check_ratio(self.ratio)
        if self.num_layers < 1 or min(self.leading, self.trailing) < 0:
            raise ValueError(
                "num_layers is 1 or more, leading and trailing are 0 or more; found "
                f"{self.num_layers}, {self.leading} and {self.trailing}."
            )

    def check(self, model) -> None:
        super().check(model)
        self.layers(model.config)

    def layers(self, config) -> range:
        first = self.first_layer
        first = 22 * config.num_layers // 36 if first is None else first
        return check_layers(first, self.num_layers, config)

    @property
    def recipe(self):
        own = super().recipe
        return own if self.reorder else (own[0], Method.build_documents, *own[2:])

    def build_documents(self, model, preamble, documents) -> list[Packet]:
        if not (self.reorder and preamble):
            return super().build_documents(model, preamble, documents)
        joined = build_packets(model, None, [[*preamble, *d] for d in documents], self.buckets)
        start = np.int32(len(preamble))
        return [
            dataclasses.replace(
                packet,
                cache=_cut(packet.cache, start, slots=self.buckets.packet(len(d))),
                length=len(d),
            )
            for packet, d in zip(joined, documents, strict=True)
        ]

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        layout = lay_out(model, request, new_tokens, self.buckets)
        question = layout.query[self.leading : max(0, len(layout.query) - self.trailing)]
        if not question:
            raise ValueError(
                f"The query has {len(layout.query)} tokens; without {self.leading} leading and "
                f"{self.trailing} trailing ones none is left to score with."
            )
        num_selected = max(1, int(layout.length * self.ratio))
        if self.reorder:
            check_lengths([p.length for p in stored], layout)
            cache = side_by_side(model, [p.cache for p in stored], layout)
        else:
            cache = compose_with_room(model, stored, layout)
        context, info = _score_and_recompute(
            model.module,
            model.params,
            cache,
            layout.padded_ids(0, cache.num_slots),
            layout.padded_ids(question.start, self.buckets.query(len(question))),
            _sizes(layout, cache.num_slots),
            np.int32(len(question)),
            np.int32(num_selected),
            rows=row_bucket(num_selected, self.buckets),
            layers=self.layers(model.config),
            reorder=self.reorder,
            published=self.published,
        )
        return Prepared((context,), layout.length, None, info)


@functools.partial(jax.jit, static_argnames=("slots",))
def _cut(cache: KVCache, start, slots: int) -> KVCache:
    """The slots from `start` on."""
    source = start + jnp.arange(slots)
    cut = kv_cache.gather(cache, jnp.minimum(source, cache.num_slots - 1))
    return cut._replace(valid=cut.valid & (source < cache.num_slots))


class _Sizes(NamedTuple):
    """A request's parts: C documents, S slots, both padded."""

    document_S: np.ndarray  # int32, a slot's document; C where it is in none
    starts_C: np.ndarray  # int32
    lengths_C: np.ndarray  # int32, 0 for padding
    preamble: np.int32  # its length
    first: np.int32  # where the tokens begin that may be chosen
    length: np.int32  # of the context


def _sizes(layout: Layout, slots: int) -> _Sizes:
    preamble = sum(map(len, layout.chunks[: layout.first_document]))
    documents = layout.chunks[layout.first_document :]
    size = power_of_two(len(documents), 8)
    document_S = np.full(slots, size, np.int32)
    starts, lengths = np.zeros(size, np.int32), np.zeros(size, np.int32)
    for i, chunk in enumerate(documents):
        document_S[chunk], starts[i], lengths[i] = i, chunk.start, len(chunk)
    return _Sizes(
        document_S, starts, lengths, *map(np.int32, (preamble, layout.first, layout.length))
    )


@functools.partial(
    jax.jit,
    static_argnames=("module", "rows", "layers", "reorder", "published"),
    donate_argnames=("cache",),
)
def _score_and_recompute(
    module,
    params,
    cache,
    ids_S,
    question_T,
    sizes: _Sizes,
    num_question,
    num_selected,
    rows: int,
    layers: range,
    reorder: bool,
    published: bool,
):
    transformer = module.bind({"params": params})
    score = functools.partial(_scores, transformer, layers=layers, published=published)
    info, first = {}, sizes.first
    if reorder:
        first = 0 if published else sizes.preamble
        scores = score(cache, question_T, num_question, sizes.length)
        count = jnp.minimum(num_selected, sizes.length - first)
        slots = choose(scores, first, sizes.length, count, 0, rows)
        order = _order(sizes, slots, published)
        info |= {"first_scores": scores, "first_selected": slots, "order": order}
        cache, ids_S = _reordered(module.config, cache, ids_S, sizes, order)
        first = 0 if published else sizes.preamble + sizes.lengths_C[order[0]]
    scores = score(cache, question_T, num_question, sizes.length)
    count = jnp.minimum(num_selected, sizes.length - first)
    slots = choose(scores, first, sizes.length, count, 0, rows)
    ids = jnp.take(ids_S, slots, mode="clip")
    _, cache = run_rows(transformer, cache, transformer.embed(ids[None]), slots)
    return cache, info | {"scores": scores, "selected": slots}


def _scores(
    transformer: Transformer,
    cache: KVCache,
    question_T,
    num,
    start,
    layers: range,
    published: bool,
) -> jax.Array:
    """How much attention each slot gets from the question: float32 `[S]`.

    A layer's is the mean over heads, then the root of the sum of squares over the question's
    tokens; the result is the mean over layers.
    """
    T, S = len(question_T), cache.num_slots
    x = transformer.embed(question_T[None])
    positions = (start + jnp.arange(T))[None]
    valid = positions < start + num
    seen_from = jnp.full_like(positions, start + num - 1) if published else positions
    total = jnp.zeros(S)
    qkv = qkv_at_layers(transformer, (cache,), x, positions, valid, layers)
    for layer, (q, k, v) in zip(layers, qkv, strict=True):
        context = Segment(cache.k[layer], cache.v[layer], cache.positions, cache.valid)
        own = Segment(k.astype(cache.dtype), v.astype(cache.dtype), positions, valid)
        weights_TxNxS = attention.weights(q, seen_from, [context, own])[0]
        mean_TxS = weights_TxNxS[..., :S].mean(axis=1) * valid[0][:, None]
        total += jnp.sqrt(jnp.sum(jnp.square(mean_TxS), axis=0))
    return total / len(layers)


def _order(sizes: _Sizes, slots_R, published: bool) -> jax.Array:
    """The documents by the share of their tokens that is chosen, ascending: int32 `[C]`."""
    C = len(sizes.lengths_C)
    document_R = jnp.take(sizes.document_S, slots_R, mode="fill", fill_value=C)
    counts = jnp.sum(document_R == jnp.arange(C)[:, None], axis=1)
    lengths = sizes.lengths_C
    if published:  # the preamble is the first document's
        counts = counts.at[0].add(jnp.sum(slots_R < sizes.preamble))
        lengths = lengths + sizes.preamble * (jnp.arange(C) == 0)
    shares = jnp.where(sizes.lengths_C > 0, counts / jnp.maximum(lengths, 1), jnp.inf)
    return jnp.argsort(shares)


def _reordered(config, cache: KVCache, ids_S, sizes: _Sizes, order_C):
    """Cache and ids with the documents in another order, every key moved to its new position."""
    rank_C = jnp.argsort(order_C)
    before = rank_C[None, :] < rank_C[:, None]
    start_C = sizes.preamble + jnp.sum(jnp.where(before, sizes.lengths_C, 0), axis=1)
    slots = jnp.arange(cache.num_slots)
    shift_S = jnp.append(start_C - sizes.starts_C, 0)[sizes.document_S]
    source = jnp.argsort(slots + shift_S)
    cache, ids_S = kv_cache.gather(cache, source), ids_S[source]
    difference = jnp.where(cache.valid, slots - cache.positions, 0)
    moved = jax.tree.map(lambda k: rope.move(config, k, difference[0][:, None]), cache.k)
    return cache._replace(k=moved, positions=cache.positions + difference), ids_S
