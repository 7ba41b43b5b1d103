"""What every compressor is: scores for the tokens of a packet, and sizes; the rest is done here.

Shapes: B packets, T rows of queries, S slots of the documents, L layers, K key/value heads, R slots
that remain.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvpacket_jax.runtime import fields
from models import attention, kv_cache
from models.attention import Segment
from models.config import ModelConfig
from models.kv_cache import KVCache


class Sizes(NamedTuple):
    """Slots of compressed packets, int32 `[B]` each, or numbers for one packet."""

    top: np.ndarray  # of the tokens with the best scores
    tail: np.ndarray  # of the last tokens
    merged: np.ndarray  # of means of all other tokens; where 0, those are dropped

    @property
    def total(self):
        return self.top + self.tail + self.merged


class Layer(NamedTuple):
    """What a compressor sees of a layer, while rows attend to the documents."""

    config: ModelConfig
    q_BxTxNxH: jax.Array  # rotated to `positions_BxT`
    positions_BxT: jax.Array
    rows_BxT: jax.Array  # bool; the others are padding
    segments: Sequence[Segment]  # all that the rows attend to
    scored: int  # which of them holds the documents
    lengths_B: jax.Array  # slots of each document, soft tokens included: the first of the segment

    @property
    def documents(self) -> Segment:
        return self.segments[self.scored]

    @property
    def local_S(self) -> jax.Array:
        return jnp.arange(self.documents.positions.shape[-1])

    @property
    def seen_BxS(self) -> jax.Array:
        return self.local_S < self.lengths_B[:, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compressor:
    """A pure function of one packet: fewer slots, the same length; each head has its own tokens.

    A subclass is a frozen dataclass, its fields are its settings. It implements `scores`, unless
    they are learned, and `split` where not all slots go to the best scores.

    name: in COMPRESSORS.
    reads_again: the rows are not the document's own, while its packet is built, but those of
      `prompt` and the document once more, read by the frozen model after the packet.
    learned: the scores are those of the adapter's distiller.
    """

    name: ClassVar[str]
    reads_again: ClassVar[bool] = False
    learned: ClassVar[bool] = False
    prompt: ClassVar[str] = ""

    keep: float = 0.5  # slots of a packet's length, soft tokens included
    keep_soft_tokens: bool = True  # the adapter's, whatever their scores

    def __post_init__(self):
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is a share of the slots, above 0 and up to 1; not {self.keep}.")
        if getattr(self, "sink", 0) < 0:
            raise ValueError(f"sink is a number of first tokens, 0 or more; not {self.sink}.")

    @property
    def label(self) -> str:
        """The name with all settings: two that differ in any make other packets."""
        return f"{self.name}/{fields.show(vars(self), type(self), '/')}"

    def scores(self, layer: Layer) -> jax.Array:
        """How much each slot is worth: float32 `[B, K, S]`, below infinity, which soft tokens are.

        What stands beyond a document's length does not count.
        """
        raise NotImplementedError

    def bias(self, weights_BxKxR: jax.Array) -> jax.Array | None:
        """What is added to the logits of slots that stand for so many tokens; None: nothing."""
        return None

    def split(self, kept: int, header: int, trailer: int) -> Sizes:
        """What `kept` slots of a packet are for; so many of the first and last are never dropped.

        `top` is at least `header`, `tail` and `top` together at least both.
        """
        return Sizes(kept, 0, 0)

    def sizes(self, length: int, header: int, trailer: int) -> Sizes:
        """Slots of a packet of this length, soft tokens included, of which so many are the ends."""
        header, trailer = self._ends(header, trailer)
        kept = max(int(length * self.keep), header + trailer, 1)
        return Sizes(length, 0, 0) if kept >= length else self.split(kept, header, trailer)

    def check_kept(self, length: int, header: int, trailer: int, what: str) -> None:
        """Raises ValueError for a packet of this length that would hold soft tokens alone."""
        soft = sum(self._ends(header, trailer))
        if soft and self.sizes(length, header, trailer).total <= soft < length:
            shares = (percent / 100 for percent in range(1, 101))
            least = next(share for share in shares if int(length * share) > soft)
            raise ValueError(
                f"{what}: beside the adapter's {soft} soft tokens there is no room for the text in "
                f"{self.keep:g} of {length} slots. Keep {least:g} or more (for a longer text less "
                "would do), or take an adapter without soft tokens."
            )

    def reduce(
        self,
        config: ModelConfig,
        cache: KVCache,
        scores: Sequence[jax.Array],
        sizes: Sizes,
        ends: tuple[int, int],
        lengths_B: jax.Array,
        slots: int,
    ) -> KVCache:
        """The compressed caches of packets; outside of jit, each layer by one program.

        Args:
          cache: of B packets, each at positions that follow one another.
          scores: of each layer.
          ends: numbers of soft tokens.
          sizes: of each packet, int32 `[B]`.
          lengths_B: slots of each packet.
          slots: R, at least each packet's `sizes.total`.
        """
        soft = soft_slots(cache.num_slots, *self._ends(*ends), lengths_B)
        k, v, bias = [], [], []
        for layer, scores_BxKxS in enumerate(scores):
            whole = cache.k[layer], cache.v[layer]
            means, weights = _reduce_layer(whole, scores_BxKxS, soft, sizes, lengths_B, slots)
            k.append(means[0])
            v.append(means[1])
            bias.append(self.bias(weights))
        valid = jnp.arange(slots) < sizes.total[:, None]
        last = jnp.take_along_axis(cache.positions, lengths_B[:, None] - 1, axis=1)
        # Heads keep different tokens: to be seen by what comes after the whole packet.
        positions = jnp.where(valid, last, 0)
        return kv_cache.from_layers(
            config, k, v, positions, valid, bias if bias[0] is not None else None
        )

    def _ends(self, header: int, trailer: int) -> tuple[int, int]:
        return (header, trailer) if self.keep_soft_tokens else (0, 0)


@functools.partial(jax.jit, static_argnames=("slots",))
def _reduce_layer(
    whole: tuple[jax.Array, jax.Array], scores_BxKxS, soft_BxS, sizes: Sizes, lengths_B, slots: int
) -> tuple[list[jax.Array], jax.Array]:
    """A layer's keys and values `[B, R, K, H]`, and of how many tokens each is: `[B, K, R]`."""
    ranked = jnp.where(soft_BxS[:, None], jnp.inf, scores_BxKxS)
    sizes = Sizes(*(jnp.asarray(n)[:, None, None] for n in sizes))
    place = places(ranked, sizes, lengths_B[:, None, None], slots)
    (k, weights), (v, _) = (merge(x, place, slots) for x in whole)
    return [k, v], weights


def soft_slots(slots: int, header: int, trailer: int, lengths_B: jax.Array) -> jax.Array:
    """Which slots of packets of such lengths hold soft tokens, bool `[B, slots]`."""
    local = jnp.arange(slots)
    return (local < header) | ((local >= lengths_B[:, None] - trailer) & (trailer > 0))


def best(scores: jax.Array, among: jax.Array, number: jax.Array) -> jax.Array:
    """Which of the last axis are the `number` best `among` those that may be; earlier ones first.

    `number` broadcasts against the scores. Returns bool, of their shape.
    """
    order = jnp.argsort(jnp.where(among, -scores, jnp.inf), axis=-1, stable=True)
    return among & (jnp.argsort(order, axis=-1) < number)


def places(scores_BxKxS, sizes: Sizes, lengths, slots: int) -> jax.Array:
    """Which slot each token goes to: int32 `[B, K, S]`; `slots` is none.

    First those of means, then those of single tokens in their order. What is neither in the tail
    nor among the best is cut into as many runs as there are means, the first ones one longer.

    Args:
      sizes, lengths: `[B, 1, 1]`.
    """
    local = jnp.arange(scores_BxKxS.shape[-1])
    tail = (local >= lengths - sizes.tail) & (local < lengths)
    body = local < lengths - sizes.tail
    top = best(scores_BxKxS, body, sizes.top)
    kept, rest = top | tail, body & ~top
    run_length, longer = jnp.divmod(lengths - sizes.tail - sizes.top, jnp.maximum(sizes.merged, 1))
    at = jnp.cumsum(rest, axis=-1) - 1
    in_long = longer * (run_length + 1)
    run = jnp.where(
        at < in_long,
        at // (run_length + 1),
        longer + (at - in_long) // jnp.maximum(run_length, 1),
    )
    single = sizes.merged + jnp.cumsum(kept, axis=-1) - 1
    merged = jnp.where(rest & (sizes.merged > 0), run, slots)
    return jnp.where(kept, single, merged)


def merge(x_BxSxKxH: jax.Array, place_BxKxS: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """The means `[B, R, K, H]` of what goes to each slot, and of how many, float32 `[B, K, R]`."""
    B, _, K, H = x_BxSxKxH.shape
    at = jnp.arange(B)[:, None, None], jnp.arange(K)[:, None], place_BxKxS
    heads_first = jnp.swapaxes(x_BxSxKxH, 1, 2).astype(jnp.float32)
    sums = jnp.zeros((B, K, slots, H)).at[at].add(heads_first, mode="drop")
    weights = jnp.zeros((B, K, slots)).at[at].add(1.0, mode="drop")
    means = sums / jnp.maximum(weights, 1)[..., None]
    return jnp.swapaxes(means, 1, 2).astype(x_BxSxKxH.dtype), weights


def watched(
    transformer,
    x_BxTxD: jax.Array,
    positions: jax.Array,
    valid: jax.Array,
    context: tuple[KVCache, ...],
    tail: KVCache,
    watch: Callable[[jax.Array, Sequence[Segment]], jax.Array],
) -> tuple[KVCache, list[jax.Array]]:
    """`run_layers` from slot 0 on: the tail, and what `watch` makes of each layer.

    `watch` gets a layer's queries and segments, the tail's the last of them.
    """
    results, x = [], x_BxTxD
    for layers in transformer.config.steps():
        q, _, _ = transformer.qkv(x, positions, i := layers.start)
        x, tail = transformer.run_layers(x, positions, valid, context, tail, 0, layers)
        segments = [Segment(c.k[i], c.v[i], c.positions, c.valid) for c in (*context, tail)]
        # Layers that share attention weights keep the same slots.
        results += [watch(q, segments)] * len(layers)
    return tail, results


def received(layer: Layer, share_BxT: jax.Array | None = None) -> jax.Array:
    """The attention that the documents' slots get from the rows: float32 `[B, K, S]`.

    Args:
      share_BxT: the weight of each row in a sum over rows and over the query heads of a key/value
        head. None: the largest that any row and head gives.
    """
    B, T, N, _ = layer.q_BxTxNxH.shape
    K, S = layer.documents.k.shape[2], layer.documents.k.shape[1]
    start = sum(s.k.shape[1] for s in layer.segments[: layer.scored])
    share = jnp.where(layer.rows_BxT, 1.0 if share_BxT is None else share_BxT, 0)

    def of_rows(rows):
        q, positions, share = rows
        weights = attention.weights(q, positions, list(layer.segments))
        weights = weights[..., start : start + S].reshape(B, -1, K, N // K, S)
        weights = weights * share[:, :, None, None, None]
        return weights.max((1, 3)) if share_BxT is None else weights.sum((1, 3))

    # In blocks, as attention itself is, so that memory is linear in S.
    count = -(-T // layer.config.query_block)
    size = -(-T // count)

    def blocks(x):
        x = jnp.pad(x, [(0, 0), (0, count * size - T), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(B, count, size, *x.shape[2:]), 1, 0)

    parts = jax.lax.map(of_rows, tuple(map(blocks, (layer.q_BxTxNxH, layer.positions_BxT, share))))
    return parts.max(0) if share_BxT is None else parts.sum(0)
