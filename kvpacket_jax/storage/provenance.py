"""What made the packets of a store: as it is written, compared and shown."""

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvpacket_jax import compress
from kvpacket_jax.packets.packet import Provenance
from models import SHARED

FORMAT = 1  # of a packet's file
TEXTS = ("model", "tokenizer", "template", "adapter", "dtype")  # the fields that are text
REPLACED = " --primer="  # in an adapter's name: what replaces its own primer follows
# How earlier versions described adapters without a name, in place of one.
DESCRIBED = r"\d+ \+ \d+ soft tokens|a (primer|writer|distiller) of |no parts$"
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
    """What a user gave to make packets: no part of their identity.

    It is kept for messages, and is what launch.answer asks for unless told otherwise.
    """

    model: str = ""
    adapter: str = ""  # "" where it came without a name: `parts` describes it then
    template: str = ""
    shared_layers: str = ""
    primer: str = ""  # in place of the adapter's own
    parts: str = ""

    @property
    def shown_model(self) -> str:
        return self.model + (f"{SHARED}{self.shared_layers}" if self.shared_layers else "")

    @property
    def shown_adapter(self) -> str:
        return (self.adapter or self.parts) + (f"{REPLACED}{self.primer}" if self.primer else "")

    def of(self, field: str) -> str:
        """What a field of a provenance is called; "" for one without a name."""
        called = {"model": self.shown_model, "adapter": self.shown_adapter}
        return (called | {"template": self.template}).get(field, "")


def to_fields(provenance: Provenance) -> dict:
    """A provenance as JSON-able fields, the format's number among them."""
    fields = {f.name: getattr(provenance, f.name) for f in dataclasses.fields(Provenance)}
    fields["format"] = FORMAT
    for name in ("primer", "compressor", "place"):  # as in stores from before there were any
        if not fields[name]:
            del fields[name]
    return fields | {"rope": {"type": type(provenance.rope).__name__, **vars(provenance.rope)}}


def fields_alone(stored: dict) -> dict:
    """The fields of a provenance, of what a provenance.json or a packet's manifest has."""
    others = ("names", "tokens", "length", "arrays")
    return {name: value for name, value in stored.items() if name not in others}


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
    if "parts" in names:
        return Names(*(names.get(name, "") for name in Names._fields))
    # Earlier versions kept what is shown.
    model, _, layers = names.get("model", "").partition(SHARED)
    adapter, _, primer = names.get("adapter", "").partition(REPLACED)
    parts = adapter if re.match(DESCRIBED, adapter) else ""
    return Names(model, "" if parts else adapter, "", layers, primer, parts)


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
        f"another {field}: {_shown(stored.get(field), stored_names.of(field))}, not "
        f"{_shown(expected[field], names.of(field))}"
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
        known |= {"model": names.model, "shared_layers": names.shared_layers}
    if names.adapter:
        known["adapter"] = names.adapter
    if names.adapter or names.parts:
        known["primer"] = names.primer
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
    for flag in (flag for field, its in FLAGS.items() if field in of for flag in its):
        if own.get(flag):
            given.append(f"--{flag}={shlex.quote(own[flag])}")
        elif flag == "template":
            given.append(UNKNOWN_TEMPLATE)
        elif own.get(flag) == "" and other.get(flag):
            given.append(LEFT_OUT[flag])
    return " ".join(given)


def _comparable(fields: dict) -> dict:
    """With what is not written where it is as usual: a packet that has it differs from others."""
    return fields | {"compressor": compressor_in(fields), "place": fields.get("place", "any")}


def _shown(value, name: str) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    text = text if len(text) != 64 else f"{text[:16]}…"
    return f"{name} ({text})" if name and name != text else text
