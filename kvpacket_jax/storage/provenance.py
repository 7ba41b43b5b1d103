"""What made the packets of a store: as it is written, compared and shown."""

import dataclasses
import json
from collections.abc import Sequence
from typing import NamedTuple

from kvpacket_jax.packets.packet import Provenance

FORMAT = 1  # of a packet's file
TEXTS = ("model", "tokenizer", "template", "adapter", "dtype")  # the fields that are text
UNCOMPRESSED = "none"  # what stands for the compressor that a provenance does not name


class Names(NamedTuple):
    """What people call a model and an adapter: kept for messages, no part of any identity."""

    model: str = ""
    adapter: str = ""


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
    return Names(names.get("model", ""), names.get("adapter", ""))


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


def flags(fields: dict, names: Names, of: Sequence[str]) -> str:
    """The flags of launch.build_packets and launch.answer that give some fields their values.

    Of fields that are known by a digest alone there is none.
    """
    known = _comparable(fields) | {"model": names.model or fields["model"]}
    # An adapter whose primer was chosen is called "NAME (what was chosen)", one without a name
    # "8 + 8 soft tokens".
    known["adapter"], _, chosen = names.adapter.partition(" (")
    flag = {"model": "--model", "adapter": "--adapter", "dtype": "--dtype"}
    flag["compressor"] = "--compress"
    given = [f"{flag[f]}={known[f]}" for f in flag if f in of and known[f] and " " not in known[f]]
    return " ".join(given + ([f"--primer={chosen[:-1]}"] if chosen and "adapter" in of else []))


def _comparable(fields: dict) -> dict:
    return fields | {"compressor": compressor_in(fields)}


def _shown(value, name: str) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    text = text if len(text) != 64 else f"{text[:16]}…"
    return f"{name} ({text})" if name and name != text else text
