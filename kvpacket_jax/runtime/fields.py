"""The settings of a frozen dataclass, from text: "ratio=0.3,layer=1"."""

import contextlib
import dataclasses
import types
import typing
from typing import Any

from models.names import did_you_mean

_WORDS = {"true": True, "false": False}
_KINDS = {int: "a whole number", float: "a number", str: "text", types.NoneType: "none"}


def settings(cls: type) -> dict[str, Any]:
    """The fields that text can set, with their types."""
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    return {f.name: hints[f.name] for f in fields if f.init and _readable(hints[f.name])}


def parse(spec: str, name: str, text: str, cls: type, separator: str = ",") -> dict[str, Any]:
    """The values that `text` gives to fields of `cls`, in the order of the text.

    Args:
      spec, name: what was asked for as a whole and what `cls` is called, for messages.

    Raises:
      ValueError: what is no setting of `cls`, or no value of it, with those there are.
    """
    kinds = settings(cls)
    values: dict[str, Any] = {}
    for pair in filter(None, (p.strip() for p in text.split(separator))):
        field, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or field not in kinds or field in values:
            wrong = "is given twice" if field in values else "is not a setting"
            wrong = wrong if equals else "is not field=value"
            close = did_you_mean(field, kinds)
            raise ValueError(f"{spec!r}: {pair!r} {wrong}{close}. {name} has {described(cls)}.")
        try:
            values[field] = _parse(value, kinds[field])
        except ValueError:
            raise ValueError(
                f"{spec!r}: {field} is {_describe(kinds[field])}, not {value!r}."
            ) from None
    return values


def show(values: dict[str, Any], cls: type, separator: str = ",") -> str:
    """The text of some values, in the order of the fields: undoes `parse`."""
    return separator.join(f"{f}={_show(values[f])}" for f in settings(cls) if f in values)


def described(cls: type) -> str:
    """What can be set, for messages."""
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    each = [f"{f} ({_describe(k)}; {_show(defaults[f])})" for f, k in settings(cls).items()]
    return ", ".join(each) or "no settings"


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
