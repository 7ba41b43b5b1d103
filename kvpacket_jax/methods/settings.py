"""Methods from text: "cache_blend" or "cache_blend:ratio=0.3", for flags and sweeps."""

import contextlib
import dataclasses
import types
import typing
from collections.abc import Iterable
from typing import Any

from kvpacket_jax.methods import METHODS, Method
from kvpacket_jax.packets.adapter import Adapter
from models.names import did_you_mean

_WORDS = {"true": True, "false": False}
_KINDS = {int: "a whole number", float: "a number", str: "text", types.NoneType: "none"}


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
    kinds = settings(METHODS[name])
    values: dict[str, Any] = {}
    for pair in filter(None, (p.strip() for p in text.split(","))):
        field, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or field not in kinds or field in values:
            wrong = "is given twice" if field in values else "is not a setting"
            wrong = wrong if equals else "is not field=value"
            close = did_you_mean(field, kinds)
            raise ValueError(f"{spec!r}: {pair!r} {wrong}{close}. {name} has {_fields(name)}.")
        try:
            values[field] = _parse(value, kinds[field])
        except ValueError:
            raise ValueError(
                f"{spec!r}: {field} is {_describe(kinds[field])}, not {value!r}."
            ) from None
    role = METHODS[name].adapter_role
    given = {"adapter": {"adapter": adapter, "primer": primer}[role]} if role else {}
    try:
        method = METHODS[name](**values, **given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{spec!r}: {error}") from error
    chosen = ",".join(f"{f}={_show(values[f])}" for f in kinds if f in values)
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


def settings(method: type[Method]) -> dict[str, Any]:
    """The fields of a method that text can set, with their types."""
    hints = typing.get_type_hints(method)
    fields = dataclasses.fields(method)
    return {f.name: hints[f.name] for f in fields if f.init and _readable(hints[f.name])}


def _options(kind: Any) -> tuple[Any, ...]:
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def _readable(kind: Any) -> bool:
    return all(
        option is bool or option in _KINDS or typing.get_origin(option) is typing.Literal
        for option in _options(kind)
    )


def _parse(value: str, kind: Any) -> Any:
    """The value as the first of the kinds that takes it; ValueError if none does."""
    options = _options(kind)
    if types.NoneType in options and value.lower() == "none":
        return None
    for option in options:
        if option is bool:
            if value.lower() in _WORDS:
                return _WORDS[value.lower()]
        elif typing.get_origin(option) is typing.Literal:
            for choice in typing.get_args(option):
                if value == str(choice):
                    return choice
        elif option is not types.NoneType:
            with contextlib.suppress(ValueError):
                return option(value)
    raise ValueError(value)


def _show(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _describe(kind: Any) -> str:
    names = []
    for option in _options(kind):
        if typing.get_origin(option) is typing.Literal:
            names += map(str, typing.get_args(option))
        elif option is bool:
            names += ["true", "false"]
        else:
            names.append(_KINDS[option])
    return " or ".join(names)


def _fields(name: str) -> str:
    """What a method can be set to, for messages."""
    method = METHODS[name]
    defaults = {f.name: f.default for f in dataclasses.fields(method)}
    kinds = settings(method)
    described = [f"{f} ({_describe(k)}; {_show(defaults[f])})" for f, k in kinds.items()]
    return ", ".join(described) or "no settings"


def _listing() -> str:
    return "Methods: " + "; ".join(f"{name}: {_fields(name)}" for name in METHODS) + "."
