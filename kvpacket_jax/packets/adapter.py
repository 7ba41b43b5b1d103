"""Adapter: what is trained, or chosen, to build packets that stand well beside each other.

Its parts are used only while packets are built, so a request costs the same with any of them.
"""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from kvpacket_jax.packets import distiller as distiller_lib
from kvpacket_jax.packets.distiller import Distiller
from kvpacket_jax.runtime import hosts, sealed
from models import low_rank
from models.disk.files import is_local
from models.low_rank import Factors

CHECKPOINT = sealed.METADATA
WRITER_SCALE = 2.0  # of low-rank changes: alpha / rank, as SemPIC has it
SCORER = tuple(name for name in Distiller._fields if name != "kept")


class Adapter(NamedTuple):
    """One for all documents; every part is optional.

    header, trailer: soft tokens, stored with the document. No tokens: `[0, D]`.
    primer: what a packet is built after, attended to and not stored: token ids, or embeddings that
      are learned. The frozen model reads it, whatever the writer.
    writer: low-rank changes to the matrices that documents are run through, by the matrix's name
      (SemPIC, arXiv 2607.28069); the model that reads packets is never changed.
    distiller: says which tokens packets keep, where they are compressed by kv_distill.
    """

    header: jax.Array  # float32 [h, D], before the document
    trailer: jax.Array  # float32 [t, D], after it
    primer: jax.Array | None = None  # int32 [p] or float32 [p, D]
    writer: dict[str, Factors] | None = None
    distiller: Distiller | None = None

    @property
    def ends(self) -> tuple[int, int]:
        """Soft tokens before each document, and after it."""
        return self.header.shape[0], self.trailer.shape[0]

    @property
    def num_tokens(self) -> int:
        """Soft tokens that are stored with each document."""
        return sum(self.ends)

    @property
    def primer_length(self) -> int:
        """Positions before a document while its packet is built."""
        return 0 if self.primer is None else self.primer.shape[0]


def init(key: jax.Array, embedding: jax.Array, header: int = 8, trailer: int = 8) -> Adapter:
    """Soft tokens from a normal with the embedding table's scalar mean and standard deviation.

    Args:
      embedding: the table `[V, D]`.
      header, trailer: numbers of tokens.
    """
    table = np.asarray(embedding, np.float32)
    mean, std = float(table.mean()), float(table.std(ddof=1))
    tokens = mean + std * jax.random.normal(key, (header + trailer, table.shape[1]), jnp.float32)
    return Adapter(tokens[:header], tokens[header:])


def empty(dim: int) -> Adapter:
    """No part at all: bare documents take the same path as wrapped ones."""
    return Adapter(jnp.zeros((0, dim)), jnp.zeros((0, dim)))


def is_bare(adapter: Adapter) -> bool:
    """Whether packets built with it are bare, as they are with nothing but a distiller."""
    return not adapter.num_tokens and adapter.primer is None and adapter.writer is None


def opening(dim: int, preamble: Sequence[int], distiller: Distiller | None = None) -> Adapter:
    """What builds the packet of a document that comes first: it is what the full context has.

    That document reads the preamble and nothing else, so its packet is built after the preamble's
    tokens, which are not stored with it, and in no other way.
    """
    primer = jnp.array(preamble, jnp.int32) if len(preamble) else None
    return empty(dim)._replace(primer=primer, distiller=distiller)


def split_trainable(adapter: Adapter) -> tuple[Adapter, jax.Array | None]:
    """The adapter without a primer of token ids, which has no gradients, and those ids."""
    if adapter.primer is None or jnp.issubdtype(adapter.primer.dtype, jnp.floating):
        return adapter, None
    return adapter._replace(primer=None), adapter.primer


def join_trainable(adapter: Adapter, ids: jax.Array | None) -> Adapter:
    """Undoes `split_trainable`."""
    return adapter if ids is None else adapter._replace(primer=ids)


def writing_params(params, adapter: Adapter, kept_BxT: jax.Array | None = None):
    """The parameters that documents are run through.

    Args:
      kept_BxT: the rows that a distiller keeps; None: it changes nothing.
    """
    if adapter.writer is not None:
        params = low_rank.attach(params, low_rank.scaled(adapter.writer, WRITER_SCALE))
    if kept_BxT is not None:
        kept = low_rank.scaled(adapter.distiller.kept, WRITER_SCALE)
        params = low_rank.attach(params, kept, kept_BxT.astype(jnp.float32))
    return params


def to_arrays(adapter: Adapter) -> dict[str, np.ndarray]:
    """Its parts by name ("header", "writer.q.a"), without those that are empty; host arrays."""
    arrays = {name: getattr(adapter, name) for name in ("header", "trailer", "primer")}
    changes = {"writer": adapter.writer or {}}
    if distiller := adapter.distiller:
        changes["distiller"] = distiller.kept
        arrays |= {f"distiller.{name}": getattr(distiller, name) for name in SCORER}
    for part, matrices in changes.items():
        for name, factors in matrices.items():
            arrays |= {f"{part}.{name}.{k}": x for k, x in factors._asdict().items()}
    return {
        name: np.asarray(x, "<i4" if _is_ids(x) else "<f4")
        for name, x in arrays.items()
        if x is not None and x.size
    }


def from_arrays(arrays: dict[str, np.ndarray], dim: int) -> Adapter:
    """Undoes `to_arrays`; `dim` is D. ValueError for a name or a shape that no adapter has."""
    # Orbax commits what it reads to a device, and programs would be compiled for that as well.
    parts = {name: np.asarray(x) for name, x in arrays.items()}
    header, trailer = (parts.pop(n, np.zeros((0, dim), "<f4")) for n in ("header", "trailer"))
    primer = parts.pop("primer", None)
    scorer = [parts.pop(f"distiller.{name}", None) for name in SCORER]
    writer, kept = (_factors(parts, part) for part in ("writer", "distiller"))
    if parts:
        raise ValueError(f"{next(iter(parts))!r} is no part of an adapter.")
    distiller = None
    if kept or any(x is not None for x in scorer):
        if any(x is None for x in scorer) or set(kept) != set(distiller_lib.MATRICES):
            raise ValueError("its distiller lacks some of its arrays.")
        distiller = Distiller(*(jnp.asarray(x, jnp.float32) for x in scorer), kept)
    for name, x in (("header", header), ("trailer", trailer)):
        if x.ndim != 2 or x.shape[1] != dim:
            raise ValueError(f"the {name} has shape {x.shape}, not [tokens, {dim}].")
    if primer is not None:
        primer = jnp.asarray(primer, jnp.int32 if _is_ids(primer) else jnp.float32)
    return Adapter(
        jnp.asarray(header, jnp.float32),
        jnp.asarray(trailer, jnp.float32),
        primer,
        writer or None,
        distiller,
    )


def _factors(parts: dict[str, np.ndarray], part: str) -> dict[str, Factors]:
    """Takes the factors "part.q.a" out of `parts`, by matrix; ValueError for half a pair."""
    factors: dict[str, dict] = {}
    for name in list(parts):
        kind, _, rest = name.partition(".")
        matrix, _, letter = rest.partition(".")
        if kind == part and matrix in low_rank.MATRICES and letter in ("a", "b"):
            factors.setdefault(matrix, {})[letter] = jnp.asarray(parts.pop(name), jnp.float32)
    if any(len(f) != 2 for f in factors.values()):
        raise ValueError(f"a {part}'s matrix has one factor only: {', '.join(factors)}.")
    return {name: Factors(**f) for name, f in factors.items()}


def _is_ids(x) -> bool:
    return not jnp.issubdtype(x.dtype, jnp.floating)


def describe(adapter: Adapter) -> str:
    """Its parts in words: "a primer of 620 tokens, a writer of rank 16 on q, k, v, o"."""
    parts = []
    if adapter.num_tokens:
        parts.append(f"{' + '.join(map(str, adapter.ends))} soft tokens")
    if adapter.primer is not None:
        parts.append(f"a primer of {adapter.primer_length} tokens")
    if adapter.writer:
        rank = next(iter(adapter.writer.values())).a.shape[-1]
        parts.append(f"a writer of rank {rank} on {', '.join(adapter.writer)}")
    if adapter.distiller is not None:
        rank = adapter.distiller.kept["q"].a.shape[-1]
        parts.append(f"a distiller of rank {rank}")
    return ", ".join(parts) or "no parts"


def scaled(adapter: Adapter, share: float) -> Adapter:
    """Its writer's change `share` times as large; the other parts as they are."""
    if adapter.writer is None:
        return adapter
    return adapter._replace(writer=low_rank.scaled(adapter.writer, share))


def rounded(adapter: Adapter) -> Adapter:
    """What is large in numbers that a bfloat16 holds, which is how it is stored: half the bytes."""
    parts = {"writer": adapter.writer, "distiller": adapter.distiller}
    return adapter._replace(**jax.tree.map(_nearest_bfloat16, parts))


def _nearest_bfloat16(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def fingerprint(adapter: Adapter | None) -> str:
    """SHA-256 over names, shapes and bytes of the parts; "none" without an adapter."""
    if adapter is None:
        return "none"
    digest = hashlib.sha256()
    # Both soft tokens, empty ones too, as packets on disk know adapters that have nothing else.
    for tokens in (adapter.header, adapter.trailer):
        array = np.asarray(tokens, "<f4")
        digest.update(str(array.shape).encode() + array.tobytes())
    for name, array in sorted(to_arrays(adapter).items()):
        if name not in ("header", "trailer"):
            digest.update(f"{name}{array.shape}".encode() + array.tobytes())
    if adapter.writer or adapter.distiller:
        digest.update(str(WRITER_SCALE).encode())
    return digest.hexdigest()


def wrap(adapter: Adapter, x_BxTxD: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """header + document + trailer, the trailer directly after each document's own length.

    Args:
      x_BxTxD: the documents' embeddings, padded.
      lengths_B: int32, true lengths.

    Returns:
      `[B, h + T + t, D]`; what follows the trailer is padding.
    """
    B, T, D = x_BxTxD.shape
    h, t = adapter.ends
    header = jnp.broadcast_to(adapter.header, (B, h, D))
    body = jnp.concatenate([header, x_BxTxD, jnp.zeros((B, t, D), x_BxTxD.dtype)], axis=1)
    if t == 0:
        return body
    place = jnp.arange(h + T + t) - h - lengths_B[:, None]  # 0 at the trailer's first token
    trailer = adapter.trailer[jnp.clip(place, 0, t - 1)]
    return jnp.where(((place >= 0) & (place < t))[..., None], trailer, body)


def save_adapter(path: str | pathlib.Path, adapter: Adapter, metadata: dict) -> None:
    """Writes an orbax checkpoint of its parts; `metadata` says what they were trained for.

    `metadata["model"]` must be the model's fingerprint: loading is checked against it. An adapter
    that is there is replaced, on a local disk when the new one is whole; ValueError for a folder
    with anything else, which would be lost.
    """
    path = hosts.absolute(path)
    if path.exists() and not (path / CHECKPOINT).exists() and any(path.iterdir()):
        raise ValueError(f"{path} is there and is no adapter: choose a new folder.")
    metadata = metadata | {
        "dim": adapter.header.shape[1],
        "fingerprint": fingerprint(adapter),
        **sealed.MARK,
    }
    arrays = {name: _smallest(x) for name, x in to_arrays(adapter).items()}
    beside = path.with_name(f".{path.name}.new") if is_local(path) else path
    ocp.save(beside, arrays, overwrite=True, custom_metadata=metadata)
    with hosts.together():
        if hosts.is_first():
            if is_local(path):  # elsewhere orbax goes by it; it holds the machine's own path
                (beside / "commit_success.txt").unlink(missing_ok=True)
            sealed.seal_folder(beside)
            if beside != path:
                _replace(beside, path)


def _replace(new: epath.Path, path: epath.Path) -> None:
    """Puts a folder in the place of another, which is gone for no longer than a renaming takes."""
    old = path.with_name(f".{path.name}.old")
    if old.exists():
        old.rmtree()
    if path.exists():
        path.rename(old)
    new.rename(path)
    if old.exists():
        old.rmtree()


def is_saved(path: str | pathlib.Path, adapter: Adapter) -> bool:
    """Whether a folder holds this very adapter, whole, as every host sees it."""
    with hosts.together():
        try:
            saved = fingerprint(load_adapter(path)) == fingerprint(adapter)
        except (FileNotFoundError, ValueError):
            saved = False
    return bool(hosts.share(np.bool_(saved)).all())


def _smallest(x: np.ndarray) -> np.ndarray:
    """As bfloat16, where that loses nothing."""
    if _is_ids(x):
        return x
    short = x.astype(jnp.bfloat16)
    return short if np.array_equal(short.astype(x.dtype), x) else x


def load_adapter(source: str | pathlib.Path, model=None, other_model: bool = False) -> Adapter:
    """Loads an adapter from a checkpoint's folder.

    Args:
      model: the LanguageModel it is to be used with; checked if given.
      other_model: accepts an adapter that was trained for another model of the same width.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: not an adapter, a damaged one, or one for another model.
    """
    path = hosts.absolute(source)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no adapter {source}: no such folder.")
    arrays, metadata = _read(path)
    try:
        adapter = from_arrays(arrays, metadata.get("dim") or arrays["header"].shape[1])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        names = ", ".join(map(str, arrays)) if isinstance(arrays, dict) else type(arrays).__name__
        raise ValueError(f"{path} holds {names}: not an adapter ({error}).") from error
    if metadata.get("fingerprint", saved_as := fingerprint(adapter)) != saved_as:
        raise ValueError(
            f"{path} is damaged: its parts are not those that were saved. Copy or train it again."
        )
    for name, x in arrays.items():
        if not np.isfinite(np.asarray(x, np.float32)).all():
            raise ValueError(f"{path}: its {name} has numbers that are not finite.")
    if model is not None:
        _check_model(path, adapter, metadata, model, other_model)
    return adapter


def _read(path) -> tuple[dict, dict]:
    """Arrays by name and metadata, as they were written."""
    if not ((path / CHECKPOINT).exists() or (path / sealed.FILE).exists()):
        raise ValueError(
            f"{path} is not an adapter's folder: it has no {CHECKPOINT}. launch.train writes one, "
            "WORKDIR/adapter."
        )
    try:
        sealed.check_folder(path)
    except sealed.Damaged as error:
        raise ValueError(f"{path} is damaged: {error}. Copy or train it again.") from error
    try:
        arrays = ocp.load(path, checkpointable_name="state")
        return arrays, ocp.metadata(path).custom_metadata or {}
    except Exception as error:  # orbax has a dozen for what is not a checkpoint
        raise ValueError(f"{path} is not an adapter's checkpoint: {error}") from error


def _check_model(path, adapter: Adapter, metadata: dict, model, other_model: bool) -> None:
    width, made_for = adapter.header.shape[1], metadata.get("model")
    named = metadata.get("model_name")
    give = f" That is {named}: --model={named} (--config.model)." if named else ""
    if width != model.config.dim:
        raise ValueError(
            f"{path}: its tokens have {width} numbers, embeddings of {model.name} have "
            f"{model.config.dim}. It was trained for another model.{give}"
        )
    if made_for != model.fingerprint and not other_model:
        raise ValueError(
            f"{path} was trained for another model than {model.name}: its fingerprint is "
            f"{(made_for or 'unknown')[:16]}, not {model.fingerprint[:16]}.{give} Answers would be "
            "worse without a sign of it. To try all the same: other_model=True (--other_model, "
            "--config.other_model)."
        )
