"""What is said of documents that a store does not have, or has from another make."""

import contextlib
import itertools
import pathlib
from collections.abc import Sequence

from kvpacket_jax.packets.packet import Provenance
from kvpacket_jax.runtime import names as known_names
from kvpacket_jax.storage import entries
from kvpacket_jax.storage.entries import PROVENANCE
from kvpacket_jax.storage.packet_file import Damaged
from kvpacket_jax.storage.provenance import (
    UNKNOWN_TEMPLATE,
    Names,
    differences,
    differing,
    flags,
    names_in,
    to_fields,
    values,
)

LISTED = 2000  # documents of a store that are read to name those like an unknown id


def why(folder: pathlib.Path, provenance: Provenance, ids: Sequence[str], names: Names) -> str:
    """Why documents are not found under a provenance; what is true of several is said once.

    Args:
      names: of the model, adapter and template of `provenance`.
    """
    own = [entries.folder_of(folder, provenance)]
    reasons: dict[str, list[str]] = {}
    for id in ids:
        others = []
        for entry in sorted(folder.glob(f"documents/*/{entries.file_name(id)}")):
            with contextlib.suppress(Damaged):  # another's damage is not what was asked about
                others.append(entries.read_provenance(entry.parent / PROVENANCE))
        if others:
            reasons.setdefault(_made_otherwise(others, provenance, names), []).append(id)
        else:
            reasons[unknown(folder, own, id, "It has none that was made so.")] = []
    return "\n".join(
        f"{folder} has {_named(ids)}, but {reason}" if ids else reason
        for reason, ids in reasons.items()
    )


def _made_otherwise(others: Sequence[dict], provenance: Provenance, names: Names) -> str:
    """What is said where documents are there, but of other makes than was asked for."""
    made = "; or with ".join(differences(stored, provenance, names) for stored in others)
    own = values(names, to_fields(provenance))
    theirs = [values(names_in(stored), stored) for stored in others]
    fields = [differing(stored, provenance) for stored in others]
    there = [flags(their, of, own) for their, of in zip(theirs, fields, strict=True)]
    asked = [flags(own, of, their) for their, of in zip(theirs, fields, strict=True)]
    if any(a == t and a and UNKNOWN_TEMPLATE not in a for a, t in zip(asked, there, strict=True)):
        return (
            f"made with {made}. The same names now mean something else: build them again, "
            "launch.build_packets."
        )
    ways = "; or ".join(dict.fromkeys(filter(None, there)))
    any_of = {flag: next((t[flag] for t in theirs if t.get(flag)), "") for flag in own}
    every = flags(own, list(dict.fromkeys(itertools.chain(*fields))), any_of)
    return (
        f"made with {made}. Give what it was built with{ways and f' ({ways})'}, or build it as "
        f"asked for: launch.build_packets{every and f' {every}'}."
    )


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return f"document{'s' if len(ids) > 1 else ''} {', '.join(map(repr, ids[:5]))}{more}"


def unknown(folder: pathlib.Path, among: Sequence[pathlib.Path], id: str, none: str) -> str:
    """That a document is in none of some folders of entries, with those that are, closest first.

    Args:
      none: what is said where they hold no document.
    """
    number = _number(among)
    if number > LISTED:
        return f"{folder} has no document {id!r} among its {number:,}."
    listed = _listed(among, id)
    return f"{folder} has no document {id!r}. {(listed and f'It has {listed}.') or none}"


def none_named(folder: pathlib.Path, among: Sequence[pathlib.Path]) -> str:
    """That documents must be named, with those that some folders of entries have."""
    number = _number(among)
    has = f"{number:,} of them" if number > LISTED else _listed(among) or "none"
    return f"No document was named: give ids. {folder} has {has}."


def _number(among: Sequence[pathlib.Path]) -> int:
    """How many documents folders of entries hold; each would be a file to read."""
    return sum(1 for own in among for path in own.glob("*.json")) - len(among)


def _listed(among: Sequence[pathlib.Path], id: str = "") -> str:
    """The documents of folders of entries, at most twenty, those like `id` first; "" for none."""
    known = sorted({name for own in among for name in entries.ids_in(own)})
    close = known_names.by_similarity(id, known, 20) if id else known[:20]
    more = f" and {len(known) - len(close)} more" if len(known) > len(close) else ""
    return f"{', '.join(close)}{more}"
