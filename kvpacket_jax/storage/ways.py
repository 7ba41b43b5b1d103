"""How documents of a store were built, in flags: what is asked for unless told otherwise."""

import contextlib
import pathlib
import shlex
from collections.abc import Mapping, Sequence

from kvpacket_jax.storage import entries
from kvpacket_jax.storage.entries import PROVENANCE
from kvpacket_jax.storage.packet_file import Damaged
from kvpacket_jax.storage.provenance import names_in, values

# Flags that may call the same thing by several names; the others differ where their values do.
CALLED = ("model", "adapter", "primer")


def built_with(
    folder: pathlib.Path, ids: Sequence[str], asked: Mapping[str, str], any_way: bool = False
) -> dict[str, str]:
    """The flags, as `provenance.values` has them, with which documents were all built.

    It is what was given to make them, and no more: whether packets are what is asked for is seen
    when they are read.

    Args:
      asked: flags with values that they must have, "" for those that must be left out.
      any_way: whichever build will do, where there are several.

    Returns:
      Where they were built in several ways that are as asked, what is the same in all.

    Raises ValueError where they were built, but never as asked.
    """
    ways = []
    for own in sorted(folder.glob("documents/*")):
        if all((own / entries.file_name(id)).exists() for id in ids):
            with contextlib.suppress(Damaged):  # it is said when it is read
                fields = entries.read_provenance(own / PROVENANCE)
                ways.append(values(names_in(fields), fields))
    certain = {flag: value for flag, value in asked.items() if flag not in CALLED}
    fit = [way for way in ways if _fits(way, certain)]
    if ways and not fit:
        differ = [f for f in certain if any(not _fits(way, {f: certain[f]}) for way in ways)]
        there = "; or with ".join(dict.fromkeys(_shown(way, differ) for way in ways))
        raise ValueError(
            f"The documents were built with {there}; asked for: {_shown(certain, differ)}. Leave "
            "it out, or build them so: launch.build_packets."
        )
    fit = [way for way in fit if _fits(way, asked)] or fit
    if not fit:
        return {}
    first, *rest = fit[:1] if any_way else fit
    return {flag: v for flag, v in first.items() if all(way.get(flag) == v for way in rest)}


def _fits(way: Mapping[str, str], asked: Mapping[str, str]) -> bool:
    return all(_alike(way.get(flag, value), value) for flag, value in asked.items())


def _alike(one: str, other: str) -> bool:
    """Whether two values are the same, or paths of the same file."""
    return one == other or pathlib.Path(one).absolute() == pathlib.Path(other).absolute()


def _shown(way: Mapping[str, str], flags: Sequence[str]) -> str:
    """The values that some flags have in a way of building."""
    values = {flag: way[flag] for flag in flags if flag in way}
    return " ".join(
        f"--{flag}={shlex.quote(value)}" if value else f"no --{flag}"
        for flag, value in values.items()
    )
