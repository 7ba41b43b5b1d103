"""Methods from text: "cache_blend" or "cache_blend:ratio=0.3", for flags and sweeps."""

from collections.abc import Iterable

from kvpacket_jax.methods import METHODS, Method
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.runtime import fields
from models.names import did_you_mean


def make(
    spec: str, adapter: Adapter | None = None, primer: Adapter | None = None
) -> tuple[str, Method]:
    """A method with its settings, and a label for its rows.

    Args:
      spec: `name` or `name:field=value,field=value`, with the fields of the method's dataclass.
      adapter, primer: for methods with that role (`Method.adapter_role`).

    Returns:
      The label, which is the spec in one spelling: the settings named in it in the order of the
      fields. And the method.

    Raises:
      ValueError: an unknown method, field or value, with those there are; or a combination of
        settings that the method refuses.
    """
    name, _, text = (part.strip() for part in spec.partition(":"))
    if name not in METHODS:
        raise ValueError(f"There is no method {name!r}{did_you_mean(name, METHODS)}. {_listing()}")
    values = fields.parse(spec, name, text, METHODS[name])
    role = METHODS[name].adapter_role
    given = {"adapter": {"adapter": adapter, "primer": primer}[role]} if role else {}
    try:
        method = METHODS[name](**values, **given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{spec!r}: {error}") from error
    chosen = fields.show(values, METHODS[name])
    return f"{name}:{chosen}" if chosen else name, method


def split(text: str) -> list[str]:
    """The specs in a list with commas: "epic,cache_blend:ratio=0.3,layer=1" are two."""
    specs: list[str] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        # A further setting of the method before it: it names no method of its own.
        if specs and "=" in part and ":" not in part:
            specs[-1] += f",{part}"
        else:
            specs.append(part)
    return specs


def listed(texts: Iterable[str]) -> list[str]:
    """The specs of a config's methods: from a command line ml-collections has one text, "a,b"."""
    return [spec for text in texts for spec in split(text)]


def _listing() -> str:
    each = (f"{name}: {fields.described(cls)}" for name, cls in METHODS.items())
    return f"Methods: {'; '.join(each)}."
