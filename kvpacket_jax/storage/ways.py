"""How documents of a store were built, in flags: what is asked for unless told otherwise."""

import contextlib
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvpacket_jax import adapters
from kvpacket_jax.storage import entries
from kvpacket_jax.storage.entries import PROVENANCE
from kvpacket_jax.storage.packet_file import Damaged
from kvpacket_jax.storage.provenance import names_in, values
from models.sources.demo_models import DEMO_MODELS

# Flags that may call the same thing by several names; the others differ where their values do.
CALLED = ("model", "adapter", "primer")
NAMED = 5  # documents that a message names

Way = dict[str, str]  # flags, as `provenance.values` has them


class Ways(NamedTuple):
    """In which ways documents were all built."""

    shared: Way  # what is the same in all that are as asked
    several: list[str]  # what differs between them, as it is shown; empty for one


def built_with(
    folder: pathlib.Path, ids: Sequence[str], asked: Mapping[str, str], any_way: bool = False
) -> Ways:
    """The flags with which documents were built.

    It is what was given to make them, and no more: whether packets are what is asked for is seen
    when they are read.

    Args:
      asked: flags with values that they must have, "" for those that must be left out.
      any_way: any build will do: of several the usual one, else the first.

    Raises ValueError where the documents share no build, or none that is as asked.
    """
    ways: dict[pathlib.Path, Way] = {}
    of: dict[str, list[Way]] = {id: [] for id in ids}
    for own in sorted(folder.glob("documents/*")):
        with contextlib.suppress(Damaged):  # it is said when it is read
            held = [id for id in of if (own / entries.file_name(id)).exists()]
            if held:
                fields = entries.read_provenance(own / PROVENANCE)
                ways[own] = values(names_in(fields), fields)
            for id in held:
                of[id].append(ways[own])
    if not all(of.values()):  # of one nothing can be said
        return Ways({}, [])
    whole = [way for way in ways.values() if all(way in found for found in of.values())]
    if not whole:
        raise ValueError(_no_build(of))
    fit = [way for way in whole if not _surely_other(way, asked)]
    if not fit:
        differ = [f for f in asked if any(_surely_other(way, {f: asked[f]}) for way in whole)]
        there = "; or with ".join(dict.fromkeys(shown(way, differ) for way in whole))
        raise ValueError(
            f"The documents were built with {there}; asked for: {shown(asked, differ)}. Leave it "
            "out, or build them so: launch.build_packets."
        )
    fit = [way for way in fit if all(_alike(way.get(f, v), v) for f, v in asked.items())] or fit
    first, *rest = sorted(fit, key=_is_unusual)[:1] if any_way else fit
    shared = {flag: v for flag, v in first.items() if all(way.get(flag) == v for way in rest)}
    differ = [flag for flag in first if flag not in shared]
    return Ways(shared, list(dict.fromkeys(shown(way, differ) for way in fit)) if rest else [])


def _is_unusual(way: Mapping[str, str]) -> bool:
    """Whether a way of building is not what is taken where no flag is given."""
    usual = {"adapter": adapters.default_for(way.get("model", "")), "primer": "", "compress": ""}
    return any(way.get(flag, value) != value for flag, value in usual.items())


def _surely_other(way: Mapping[str, str], asked: Mapping[str, str]) -> bool:
    """Whether a way of building cannot be what is asked for, whatever its paths are paths of."""
    return any(
        flag in way
        and way[flag] != value
        and (
            flag not in CALLED
            or {way[flag], value} <= DEMO_MODELS.keys()
            or (flag == "adapter" and adapters.NONE in (way[flag], value))
        )
        for flag, value in asked.items()
    )


def _alike(one: str, other: str) -> bool:
    """Whether two values are the same, or paths of the same file."""
    return one == other or pathlib.Path(one).absolute() == pathlib.Path(other).absolute()


def _no_build(of: Mapping[str, Sequence[Way]]) -> str:
    """That no build has all documents, with those that there are."""
    every = [way for ways in of.values() for way in ways]
    differ = [f for f in every[0] if any(way.get(f) != every[0].get(f) for way in every)]
    builds: dict[str, list[str]] = {}
    for id, ways in of.items():
        there = " or ".join(dict.fromkeys(shown(way, differ) for way in ways))
        builds.setdefault(there, []).append(repr(id))
    listed = "; ".join(
        f"{', '.join(ids[:NAMED])}{', …' if len(ids) > NAMED else ''} with {there}"
        for there, ids in builds.items()
    )
    return (
        f"No build has all of these documents: {listed}. Build them alike (launch.build_packets), "
        "or ask about them apart."
    )


def shown(way: Mapping[str, str], flags: Sequence[str]) -> str:
    """The values that some flags have in a way of building."""
    given = {flag: way[flag] for flag in flags if flag in way}
    return " ".join(
        f"--{flag}={shlex.quote(value)}" if value else f"no --{flag}"
        for flag, value in given.items()
    )
