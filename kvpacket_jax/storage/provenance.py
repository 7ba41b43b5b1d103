"""What made the packets of a store: as it is written, compared and shown."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from kvpacket_jax.packets.packet import Provenance
from models import SHARED

FORMAT = 1  # of a packet's file
TEXTS = ("model", "tokenizer", "template", "adapter", "dtype")  # the fields that are text
REPLACED = " --primer="  # in an adapter's name: what replaces its own primer follows
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


def flags(names: Names, fields: dict, of: Sequence[str], beside: Names) -> str:
    """The flags of launch.build_packets and launch.answer that give some fields their values.

    Where a field is known by a digest alone there is none.

    Args:
      names, fields: of a provenance; of: the fields in question.
      beside: the names of the other provenance: what it has, and this one has not, is left out.
    """
    given = []
    if "model" in of and names.model:
        model, _, layers = names.model.partition(SHARED)
        given.append(f"--model={shlex.quote(model)}")
        if SHARED in names.model + beside.model:
            given.append(f"--shared_layers={layers}")
    if "adapter" in of and names.adapter:
        adapter, _, primer = names.adapter.partition(REPLACED)
        if " soft tokens" not in adapter:  # an adapter without a name, described
            given.append(f"--adapter={shlex.quote(adapter)}")
        if primer:
            given.append(f"--primer={shlex.quote(primer)}")
        elif REPLACED in beside.adapter:
            given.append("without --primer")
    if "dtype" in of:
        given.append(f"--dtype={fields['dtype']}")
    if "compressor" in of:
        compressor = compressor_in(fields)
        without = compressor == UNCOMPRESSED
        given.append("without --compress and --keep" if without else f"--compress={compressor}")
    if "template" in of:
        given.append("its --template")
    return " ".join(given)


def _comparable(fields: dict) -> dict:
    return fields | {"compressor": compressor_in(fields)}


def _shown(value, name: str) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    text = text if len(text) != 64 else f"{text[:16]}…"
    return f"{name} ({text})" if name and name != text else text
