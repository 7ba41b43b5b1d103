"""What made the packets of a store: as it is written, compared and shown."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvpacket_jax import compress
from kvpacket_jax.packets.packet import Provenance
from models import SHARED

FORMAT = 1  # of a packet's file
TEXTS = ("model", "tokenizer", "template", "adapter", "dtype")  # the fields that are text
REPLACED = " --primer="  # in an adapter's name: what replaces its own primer follows
UNCOMPRESSED = "none"  # what stands for the compressor that a provenance does not name
# The flags that give a field its value, and what is said of one that is to be left out.
FLAGS = {
    "model": ("model", "shared_layers"),
    "adapter": ("adapter", "primer"),
    "dtype": ("dtype",),
    "compressor": ("compress",),
    "template": ("template",),
}
LEFT_OUT = {
    "shared_layers": "--shared_layers=",
    "primer": "without --primer",
    "compress": "without --compress and --keep",
}
UNKNOWN_TEMPLATE = "its --template"  # of stores written before templates had names there


class Names(NamedTuple):
    """What people call a model, an adapter and a template: no part of any identity.

    They are kept for messages, and as what is asked for where nothing else is.
    """

    model: str = ""
    adapter: str = ""
    template: str = ""


def to_fields(provenance: Provenance) -> dict:
    """A provenance as JSON-able fields, the format's number among them."""
    fields = {f.name: getattr(provenance, f.name) for f in dataclasses.fields(Provenance)}
    fields["format"] = FORMAT
    for name in ("primer", "compressor"):  # as packets are that were stored before there were any
        if not fields[name]:
            del fields[name]
    return fields | {"rope": {"type": type(provenance.rope).__name__, **vars(provenance.rope)}}


def check_fields(fields: dict) -> None:
    """Raises ValueError for what cannot be the fields of a provenance on disk, and their names."""
    names = fields.get("names", {})
    texts = {name: fields.get(name) for name in TEXTS} | {f"names: {n}": names[n] for n in names}
    texts["compressor"] = compressor_in(fields)
    if wrong := [name for name, value in texts.items() if not isinstance(value, str)]:
        raise ValueError(f"its {wrong[0]} is no text")


def names_in(fields: dict) -> Names:
    """The names beside the fields of a provenance on disk; empty in stores that have none."""
    names = fields.get("names", {})
    return Names(*(names.get(name, "") for name in Names._fields))


def compressor_in(fields: dict) -> str:
    """What compressed the packets of a provenance on disk."""
    return fields.get("compressor", UNCOMPRESSED)


def differences(stored: dict, provenance: Provenance, names: Names = Names()) -> str:
    """In words, the fields in which a provenance on disk differs from one; "" if there are none.

    Args:
      stored: the fields on disk.
      names: of the model and adapter of `provenance`.
    """
    stored_names, different = names_in(stored), differing(stored, provenance)
    stored, expected = _comparable(stored), _comparable(to_fields(provenance))
    return " and ".join(
        f"another {field}: {_shown(stored.get(field), getattr(stored_names, field, ''))}, not "
        f"{_shown(expected[field], getattr(names, field, ''))}"
        for field in different
    )


def differing(stored: dict, provenance: Provenance) -> list[str]:
    """The fields in which a provenance on disk differs from one; more than it has are its own."""
    stored, expected = (_comparable(fields) for fields in (stored, to_fields(provenance)))
    if stored.get("model") != expected["model"]:
        return ["model"]  # the rest follows from it
    return [field for field in expected if stored.get(field) != expected[field]]


def values(names: Names, fields: dict) -> dict[str, str]:
    """The flags of launch.build_packets that make packets so, "" for those that are left out.

    Where a field is known by a digest alone there is none.
    """
    known = {}
    if names.model:
        known["model"], _, known["shared_layers"] = names.model.partition(SHARED)
    if names.adapter:
        adapter, _, known["primer"] = names.adapter.partition(REPLACED)
        if " soft tokens" not in adapter:  # else one without a name, described
            known["adapter"] = adapter
    if names.template:
        known["template"] = names.template
    compressor = compressor_in(fields)
    known["compress"] = "" if compressor == UNCOMPRESSED else compress.shortened(compressor)
    return known | {"dtype": fields["dtype"]}


def flags(own: Mapping[str, str], of: Sequence[str], other: Mapping[str, str]) -> str:
    """The flags of launch.build_packets and launch.answer that give some fields their values.

    Args:
      own: as `values` has them, of a provenance; of: the fields in question.
      other: those of another provenance, which differ: what is to be left out is said.
    """
    given = []
    for flag in (flag for field in of for flag in FLAGS.get(field, ())):
        if own.get(flag):
            given.append(f"--{flag}={shlex.quote(own[flag])}")
        elif flag == "template":
            given.append(UNKNOWN_TEMPLATE)
        elif own.get(flag) == "" and other.get(flag):
            given.append(LEFT_OUT[flag])
    return " ".join(given)


def _comparable(fields: dict) -> dict:
    return fields | {"compressor": compressor_in(fields)}


def _shown(value, name: str) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    text = text if len(text) != 64 else f"{text[:16]}…"
    return f"{name} ({text})" if name and name != text else text
