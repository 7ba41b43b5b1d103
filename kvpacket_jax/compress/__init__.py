"""Compressors of packets, by name. One file each; base.py says what they are."""

import dataclasses

from kvpacket_jax.compress.base import Compressor
from kvpacket_jax.compress.expected_attention import ExpectedAttention
from kvpacket_jax.compress.knorm import KNorm
from kvpacket_jax.compress.kv_distill import KVDistill
from kvpacket_jax.compress.kvzip import KVzip
from kvpacket_jax.compress.snapkv import SnapKV
from kvpacket_jax.compress.streaming import Streaming
from kvpacket_jax.compress.zeromerge import ZeroMerge
from kvpacket_jax.runtime import fields
from kvpacket_jax.runtime.names import check

COMPRESSORS: dict[str, type[Compressor]] = {
    "knorm": KNorm,
    "streaming": Streaming,
    "snapkv": SnapKV,
    "zeromerge": ZeroMerge,
    "expected_attention": ExpectedAttention,
    "kvzip": KVzip,
    "kv_distill": KVDistill,
}


def make(spec: str | None, keep: float | None = None) -> Compressor | None:
    """The compressor of a text, None for None or "none".

    Args:
      spec: a name, or with settings "snapkv/window=16/kernel=3".
      keep: the share of slots that is kept; the compressor's own if None.

    Raises:
      ValueError: an unknown name, setting or value, or a share where nothing is compressed.
      TypeError: a compressor that is no text, or a share that is no number.
    """
    if not isinstance(spec, str | None):
        raise TypeError(f"compress is a text, snapkv say; not {spec!r}.")
    if isinstance(keep, bool) or not isinstance(keep, int | float | None):
        raise TypeError(f"keep is a share, .9 say; not {keep!r}.")
    name, _, text = (spec or "none").partition("/")
    if name == "none":
        if text:
            raise ValueError(f"{spec}: nothing is compressed, so there is nothing to set.")
        if keep is not None:
            raise ValueError(
                f"keep={keep} says how much a compressor keeps: name one, expected_attention say."
            )
        return None
    check(name, COMPRESSORS, "compressor")
    values = fields.parse(spec, name, text, COMPRESSORS[name], "/")
    if keep is not None:
        if "keep" in values:
            raise ValueError(f"{spec}: keep is given a second time, as {keep}.")
        values["keep"] = keep
    return COMPRESSORS[name](**values)


def shortened(label: str) -> str:
    """What `make` takes for the compressor of a label: its share, and settings that are not usual.

    The label itself where this version has none such.
    """
    try:
        compressor = make(label)
    except ValueError:
        return label
    if compressor is None:
        return label
    usual = {f.name: f.default for f in dataclasses.fields(compressor)}
    of = {k: v for k, v in vars(compressor).items() if k == "keep" or v != usual[k]}
    return f"{compressor.name}/{fields.show(of, type(compressor), '/')}"


__all__ = ["COMPRESSORS", "Compressor", "make", "shortened"]
