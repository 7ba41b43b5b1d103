"""Packet: the KV cache of one wrapped document at local positions; build_packets makes them."""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvpacket_jax.compress import Compressor
from kvpacket_jax.compress.base import Sizes
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import Buckets, in_batches
from kvpacket_jax.packets.caches import packet_caches, primer_cache, scored_caches
from models import LanguageModel, kv_cache, low_rank
from models.kv_cache import KVCache
from models.rope import Rope

FIRST = "first"  # the place of a document with none before it: `Provenance.place`
BATCH_TOKENS = 2048  # rows computed at once; enough to fill a CPU and a small GPU


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where packets come from: all of one build have the same, and are read under it only."""

    model: str  # fingerprint
    tokenizer: str  # fingerprint, or "none"
    template: str  # what the texts were put into, a digest; "none" for ids from elsewhere
    adapter: str  # fingerprint, or "none"
    dtype: str
    rope: Rope
    # Digest of the token ids a document was read after, where they were chosen for it; "" where
    # the adapter says what they are.
    primer: str = dataclasses.field(default="", kw_only=True)
    # What they were compressed by, with all its settings (`Compressor.label`); "" by nothing.
    compressor: str = dataclasses.field(default="", kw_only=True)
    # FIRST for packets of documents that come first; "" wherever else they stand.
    place: str = dataclasses.field(default="", kw_only=True)


@dataclasses.dataclass(frozen=True)
class Manifest(Provenance):
    """Where one packet comes from, and of which tokens it is."""

    tokens: tuple[int, ...]


def manifest(provenance: Provenance, tokens: Sequence[int]) -> Manifest:
    """The manifest of one packet of a build."""
    fields = {f.name: getattr(provenance, f.name) for f in dataclasses.fields(Provenance)}
    return Manifest(**fields, tokens=tuple(tokens))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["cache"],
    meta_fields=["length", "manifest", "kept"],
)
@dataclasses.dataclass(frozen=True)
class Packet:
    """Immutable, and it knows nothing of its neighbours.

    `cache` has batch 1 and a bucket of slots, the first `slots` of them valid, at positions
    0 … length - 1; in a compressed packet, whose heads keep different tokens, all at the last.
    """

    cache: KVCache
    length: int
    manifest: Manifest
    kept: int | None = None  # slots of a compressed packet

    @property
    def slots(self) -> int:
        """How many slots it stores."""
        return self.length if self.kept is None else self.kept


_primer_cache = functools.partial(jax.jit, static_argnames=("module",))(primer_cache)


# Of each model that is in use: the two primers that were read last, a document's in any place and
# that of one which comes first, with their caches.
_last_primers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@functools.partial(jax.jit, static_argnames=("module", "slots"))
def _padded_primer_cache(module, params, ids, length, slots: int) -> KVCache:
    return kv_cache.resize(primer_cache(module, params, ids, length), slots)


def read_primer(
    model: LanguageModel, adapter: Adapter | None, buckets: Buckets | None = None
) -> KVCache | None:
    """`primer_cache` of an adapter: read once for all the packets that are built after it.

    Args:
      buckets: pads a primer of token ids, so that primers of many lengths share a few programs.
        None: the one primer of a build has its own length; the model's last two are remembered,
        for they are longer than most documents.
    """
    if adapter is None or adapter.primer is None:
        return None
    if buckets is None:
        ids = np.asarray(adapter.primer)
        known = str(ids.dtype), ids.tobytes()
        last = _last_primers.get(model, ())  # looked up once: another thread may replace it
        cache = next((cache for key, cache in last if key == known), None)
        if cache is None:
            cache = _primer_cache(model.module, model.params, adapter.primer)
            _last_primers[model] = ((known, cache), *last[:1])
        return cache
    rows = buckets.build(adapter.primer_length)
    ids = np.zeros(rows, np.int32)
    ids[: adapter.primer_length] = adapter.primer
    # Its rows in fine steps, for they are computed; its slots in coarse ones, for each size of a
    # document has a program for each of them.
    length, slots = np.int32(adapter.primer_length), buckets.packet(rows)
    return _padded_primer_cache(model.module, model.params, ids, length, slots)


@functools.partial(jax.jit, static_argnames=("module", "slots"))
def _build(module, params, adapter, primer, ids_BxT, lengths_B, slots: int) -> list[KVCache]:
    caches = packet_caches(module, params, adapter, ids_BxT, lengths_B, primer)
    return _apart(kv_cache.resize(caches, slots))


@functools.partial(jax.jit, static_argnames=("module", "compressor"))
def _scored(module, params, adapter, primer, ids_BxT, lengths_B, compressor, prompt, top_B):
    given = module, params, adapter, ids_BxT, lengths_B, primer
    return scored_caches(*given, compressor, prompt, top_B)


@jax.jit
def _apart(caches: KVCache) -> list[KVCache]:
    return [kv_cache.row(caches, i) for i in range(caches.batch)]


def provenance_of(
    model: LanguageModel,
    adapter: Adapter | None,
    template: str = "none",
    compressor: Compressor | None = None,
) -> Provenance:
    """The provenance of packets that `model` builds with `adapter` and `compressor` now."""
    return Provenance(
        model=model.fingerprint,
        tokenizer=model.tokenizer.fingerprint if model.tokenizer else "none",
        template=template,
        adapter=adapter_lib.fingerprint(adapter),
        dtype=str(jnp.dtype(model.dtype)),
        rope=model.config.rope,
        compressor="" if compressor is None else compressor.label,
    )


class Batch(NamedTuple):
    """Documents that are run together."""

    rows: int  # a build bucket, soft tokens included
    members: tuple[int, ...]  # which documents


def plan_batches(
    lengths: Sequence[int],
    rows_of: Callable[[int], int] = Buckets().build,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Batch]:
    """Documents by their rows, in their order. A function of its arguments alone.

    Args:
      lengths: positions of each, soft tokens included.
      rows_of: the rows that a length is computed with.
      batch_tokens: rows computed at once, at most, unless a single document has more.
    """
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        groups.setdefault(rows_of(length), []).append(i)
    return [
        Batch(rows, tuple(batch))
        for rows, members in sorted(groups.items())
        for batch in in_batches(members, batch_tokens // rows)
    ]


def build_batch(
    model: LanguageModel,
    adapter: Adapter | None,
    rows: int,
    documents: Sequence[Sequence[int]],
    provenance: Provenance,
    buckets: Buckets = Buckets(),
    primer: KVCache | None = None,
    compressor: Compressor | None = None,
) -> list[Packet]:
    """The packets of one planned batch; does not wait for the device.

    Args:
      rows: the batch's, which every document fits with the adapter's soft tokens.
      provenance: which names the compressor.
      primer: `read_primer` of the adapter.

    Raises ValueError where `primer` is there and the adapter has none, or the other way round.
    """
    wrapper = _wrapper(model, adapter)
    if (primer is None) != (wrapper.primer is None):
        raise ValueError("build_batch needs the adapter's own primer: give read_primer's cache.")
    extra = wrapper.num_tokens
    ids = np.zeros((len(documents), rows - extra), np.int32)
    lengths = np.array(list(map(len, documents)), np.int32)
    for row, document in zip(ids, documents, strict=True):
        row[: len(document)] = document
    # The ids were read into `primer`: kept out of the program, they need not be an input of it.
    parts = wrapper._replace(primer=None)
    given = model.module, model.params, parts, primer, ids, lengths
    kept: Sequence[int | None] = [None] * len(documents)
    if compressor is None:
        caches = _build(*given, buckets.packet(rows))
    else:
        each = [compressor.sizes(int(n) + extra, *parts.ends) for n in lengths]
        sizes = Sizes(*(np.array(x, np.int32) for x in zip(*each, strict=True)))
        kept = sizes.total.tolist()
        # The share that is kept is known by the sizes, and what is kept is taken by programs of one
        # layer: so the model's own, which take long to compile, serve every share.
        same = dataclasses.replace(compressor, keep=1.0)
        cache, scores = _scored(*given, same, _prompt(model, compressor), sizes.top)
        slots, wrapped = buckets.packet(max(kept)), lengths + extra
        caches = _apart(same.reduce(model.config, cache, scores, sizes, parts.ends, wrapped, slots))
    return [
        Packet(cache, len(document) + extra, manifest(provenance, document), number)
        for document, cache, number in zip(documents, caches, kept, strict=True)
    ]


def _prompt(model: LanguageModel, compressor: Compressor) -> np.ndarray:
    ids = model.tokenizer.encode(compressor.prompt) if model.tokenizer else []
    return np.array(ids, np.int32)


def build_packets(
    model: LanguageModel,
    adapter: Adapter | None,
    documents: Sequence[Sequence[int]],
    buckets: Buckets = Buckets(),
    compressor: Compressor | None = None,
) -> list[Packet]:
    """Runs each document alone and keeps its cache.

    Args:
      adapter: wraps every document; None leaves them bare (the preamble is built so).
      documents: token ids of each, tokenised alone, without special tokens.
      compressor: keeps fewer slots of each; None keeps all.

    Raises:
      ValueError: an empty document, ids outside the vocabulary, a document longer than the
        model's context, an adapter of another width; before anything is computed.
    """
    check_adapter(model, adapter)
    check_compressor(adapter, compressor)
    for i, ids in enumerate(documents):
        check_document(model, adapter, ids, f"Document {i}", compressor)
    provenance = provenance_of(model, adapter, compressor=compressor)
    extra = _wrapper(model, adapter).num_tokens
    primer = read_primer(model, adapter)
    packets: list[Packet | None] = [None] * len(documents)
    for batch in plan_batches([len(ids) + extra for ids in documents], buckets.build):
        chosen = [documents[i] for i in batch.members]
        given = model, adapter, batch.rows, chosen, provenance, buckets, primer
        built = build_batch(*given, compressor)
        for i, packet in zip(batch.members, built, strict=True):
            packets[i] = packet
        jax.block_until_ready([packet.cache for packet in built])
    return packets


def _wrapper(model: LanguageModel, adapter: Adapter | None) -> Adapter:
    return adapter_lib.empty(model.config.dim) if adapter is None else adapter


def check_ids(model: LanguageModel, ids: Sequence[int], what: str) -> None:
    """Raises ValueError for an empty sequence or ids outside the vocabulary."""
    if len(ids) == 0:
        raise ValueError(f"{what} is empty: there is nothing to run through the model.")
    low, high = min(ids), max(ids)
    if low < 0 or high >= model.config.vocab_size:
        raise ValueError(
            f"{what} has token id {low if low < 0 else high}; the vocabulary of {model.name} ends "
            f"at {model.config.vocab_size - 1}. Was it tokenised for another model?"
        )


def check_document(
    model: LanguageModel,
    adapter: Adapter | None,
    ids: Sequence[int],
    what: str,
    compressor: Compressor | None = None,
) -> None:
    """Raises ValueError for what cannot become a packet: empty, unknown ids, or too long."""
    check_ids(model, ids, what)
    parts = _wrapper(model, adapter)
    around = {"soft tokens": parts.num_tokens, "a primer": parts.primer_length}
    if compressor is not None and compressor.reads_again:
        again = len(_prompt(model, compressor)) + len(ids) - parts.primer_length
        around[f"{compressor.name}'s second reading"] = max(again, 0)
    detail = "".join(f", {n} of {name}" for name, n in around.items() if n)
    model.check_length(len(ids) + sum(around.values()), what, detail)


def check_kept(
    adapter: Adapter | None, compressor: Compressor | None, ids: Sequence[int], what: str
) -> None:
    """Raises ValueError for a document of which `compressor` would keep the soft tokens alone.

    The published code builds such packets, and so does `build_packets`: callers ask where a user's
    documents come in.
    """
    if adapter is not None and compressor is not None:
        compressor.check_kept(len(ids) + adapter.num_tokens, *adapter.ends, what)


def check_adapter(model: LanguageModel, adapter: Adapter | None) -> None:
    """Raises ValueError for an adapter that was trained for a model of other sizes."""
    parts = _wrapper(model, adapter)
    floats = [parts.header, parts.trailer]
    if parts.primer is not None and parts.primer.ndim == 1:
        check_ids(model, np.asarray(parts.primer).tolist(), "The adapter's primer")
    elif parts.primer is not None:
        floats.append(parts.primer)
    if parts.distiller is not None:
        floats.append(parts.distiller.hidden.T)
    widths = {x.shape[-1] for x in floats}
    if widths != {model.config.dim}:
        raise ValueError(
            f"The adapter's tokens have {', '.join(map(str, sorted(widths)))} numbers, embeddings "
            f"of {model.name} have {model.config.dim}: it was trained for another model."
        )
    _check_factors(model, "writer", parts.writer or {})
    _check_factors(model, "distiller", parts.distiller.kept if parts.distiller else {})


def _check_factors(model: LanguageModel, part: str, factors: dict[str, low_rank.Factors]) -> None:
    names = tuple(factors)
    expected = jax.eval_shape(lambda: low_rank.init(model.config, jax.random.key(0), 1, names))
    for name in names:
        for letter, rank_axis in (("a", -1), ("b", 1)):
            shape, known = (list(getattr(f[name], letter).shape) for f in (factors, expected))
            shape[rank_axis] = known[rank_axis]
            if shape != known:
                raise ValueError(
                    f"The adapter's {part} has factor {letter} of {name} in shape {shape}, "
                    f"{model.name} needs {known}: it was trained for another model."
                )


def check_compressor(adapter: Adapter | None, compressor: Compressor | None) -> None:
    """Raises ValueError for a compressor that needs a distiller, and an adapter that has none."""
    if compressor is None or not compressor.learned:
        return
    if adapter is None or adapter.distiller is None:
        found = "no adapter is used here" if adapter is None else "this one has none"
        raise ValueError(
            f"{compressor.name} needs an adapter with a distiller, and {found}: train one "
            "(launch.train --config=configs/train.py:distill) and give its folder, or take another "
            "compressor."
        )
