"""Adapter: the trained soft tokens that wrap every document."""

import hashlib
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from kvpacket_jax.runtime import hosts

CHECKPOINT = "_CHECKPOINT_METADATA"  # a file that orbax puts into every checkpoint


class Adapter(NamedTuple):
    """One pair for all documents, float32."""

    header: jax.Array  # [h, D], before the document
    trailer: jax.Array  # [t, D], behind it

    @property
    def num_tokens(self) -> int:
        return self.header.shape[0] + self.trailer.shape[0]


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
    """No soft tokens: bare documents take the same path as wrapped ones."""
    return Adapter(jnp.zeros((0, dim)), jnp.zeros((0, dim)))


def fingerprint(adapter: Adapter | None) -> str:
    """SHA-256 over shapes and float32 bytes; "none" without an adapter."""
    if adapter is None:
        return "none"
    digest = hashlib.sha256()
    for part in adapter:
        array = np.asarray(part, "<f4")
        digest.update(str(array.shape).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def wrap(adapter: Adapter, x_BxTxD: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """header + document + trailer, the trailer directly behind each document's own length.

    Args:
      x_BxTxD: the documents' embeddings, padded.
      lengths_B: int32, true lengths.

    Returns:
      `[B, h + T + t, D]`; what follows the trailer is padding.
    """
    B, T, D = x_BxTxD.shape
    h, t = adapter.header.shape[0], adapter.trailer.shape[0]
    header = jnp.broadcast_to(adapter.header, (B, h, D))
    body = jnp.concatenate([header, x_BxTxD, jnp.zeros((B, t, D), x_BxTxD.dtype)], axis=1)
    if t == 0:
        return body
    place = jnp.arange(h + T + t) - h - lengths_B[:, None]  # 0 at the trailer's first token
    trailer = adapter.trailer[jnp.clip(place, 0, t - 1)]
    return jnp.where(((place >= 0) & (place < t))[..., None], trailer, body)


def save_adapter(path: str | pathlib.Path, adapter: Adapter, metadata: dict) -> None:
    """Writes an orbax checkpoint of the two arrays; `metadata` says what they were trained for.

    `metadata["model"]` must be the model's fingerprint: loading is checked against it. An adapter
    that is there is replaced; ValueError for a folder with anything else, which would be lost.
    """
    path = hosts.absolute(path)
    if path.exists() and not (path / CHECKPOINT).exists() and any(path.iterdir()):
        raise ValueError(f"{path} is there and is no adapter: choose a new folder.")
    arrays = {name: np.asarray(x, np.float32) for name, x in adapter._asdict().items()}
    ocp.save(path, arrays, overwrite=True, custom_metadata=metadata)


def shipped_adapters() -> dict[str, pathlib.Path]:
    """Adapters that come with the project, by name."""
    folder = pathlib.Path(__file__).parents[1] / "adapters"
    return {p.name: p for p in sorted(folder.glob("*")) if p.is_dir()}


def name_for(model: str, named: str | None) -> str | None:
    """What to load for a model's name: the adapter named, else the one shipped; None for "none"."""
    if named == "none":
        return None
    return named or (model if model in shipped_adapters() else None)


def load_adapter(source: str | pathlib.Path, model=None, other_model: bool = False) -> Adapter:
    """Loads an adapter from a checkpoint's folder, or one that is shipped, by its name.

    Args:
      model: the LanguageModel it is to be used with; checked if given.
      other_model: accepts an adapter that was trained for another model of the same width.

    Raises:
      FileNotFoundError: neither a folder nor a shipped name.
      ValueError: not an adapter, or one for another model.
    """
    path = shipped_adapters().get(str(source)) or hosts.absolute(source)
    if not path.is_dir():
        known = ", ".join(shipped_adapters()) or "none yet"
        raise FileNotFoundError(f"There is no adapter {source}: no such folder. Shipped: {known}.")
    try:
        arrays = ocp.load(path, checkpointable_name="state")
    except Exception as error:  # orbax has a dozen for what is not a checkpoint
        raise ValueError(f"{path} is not an adapter's checkpoint: {error}") from error
    if not isinstance(arrays, dict) or set(arrays) != set(Adapter._fields):
        found = ", ".join(map(str, arrays)) if isinstance(arrays, dict) else type(arrays).__name__
        raise ValueError(f"{path} holds {found}, not header and trailer: not an adapter.")
    adapter = Adapter(**{name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()})
    if model is not None:
        _check_model(path, adapter, model, other_model)
    return adapter


def _check_model(path: pathlib.Path, adapter: Adapter, model, other_model: bool) -> None:
    width = adapter.header.shape[1]
    if width != model.config.dim:
        raise ValueError(
            f"{path}: its tokens have {width} numbers, embeddings of {model.name} have "
            f"{model.config.dim}. It was trained for another model."
        )
    made_for = (ocp.metadata(path).custom_metadata or {}).get("model")
    if made_for != model.fingerprint and not other_model:
        raise ValueError(
            f"{path} was trained for the model with fingerprint {made_for or 'unknown'}; "
            f"{model.name} has {model.fingerprint}. Answers would be worse without a sign of it. "
            "To try all the same: other_model=True (--other_model, --config.other_model)."
        )
