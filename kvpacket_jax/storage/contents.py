"""What a store holds, and whether it is whole; needs no model."""

import contextlib
import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from kvpacket_jax.runtime.progress import SILENT, Progress
from kvpacket_jax.storage import entries, packet_file, store
from kvpacket_jax.storage.entries import DOCUMENTS, OPENINGS, PREAMBLE, PROVENANCE
from kvpacket_jax.storage.packet_file import PACKETS, Damaged, packet_path
from kvpacket_jax.storage.provenance import (
    UNCOMPRESSED,
    Names,
    compressor_in,
    fields_alone,
    names_in,
)
from models.identity import digest

UNSIGNED = "not signed"  # with the store's key, where there is one


class StoredDocument(NamedTuple):
    """A document of a store, as it is listed."""

    id: str
    names: Names
    dtype: str
    packet: str  # its name
    tokens: int  # of the document, without soft tokens; 0 where `problem` says why
    num_bytes: int  # of the packet's file, which documents with the same text share
    problem: str = ""  # "missing", "damaged", UNSIGNED, which file is damaged or unreadable why
    compressor: str = UNCOMPRESSED  # with its settings
    is_preamble: bool = False
    is_opening: bool = False  # the packet of a document that comes first
    build: str = ""  # a digest of its provenance
    read_by: str = ""  # a digest of tokenizer and template: only what they read alike is compared
    text: str = ""  # a digest of its tokens
    has_signature: bool = False  # of whatever key


class _Looked(NamedTuple):
    """What the file of a packet says, or what is wrong with it."""

    num_bytes: int = 0
    problem: str = ""
    made_by: str = ""
    tokens: int = 0
    read_by: str = ""
    text: str = ""


class _Found(NamedTuple):
    """An entry's file, and what its provenance says."""

    path: pathlib.Path
    blank: StoredDocument
    made_by: str  # "" where it is damaged


def read(
    folder: pathlib.Path,
    key: bytes | None = None,
    every_byte: bool = False,
    progress: Progress = SILENT,
) -> list[StoredDocument]:
    """The documents of a store by model, adapter and id.

    A preamble is listed where something is wrong with it, for no answer goes without. Packets of
    documents that come first are listed after the others. Of entries that are not signed with `key`
    that is said, and nothing read of their packets; of a damaged entry the file stands for the id,
    of a damaged provenance its folder for the names.

    Args:
      every_byte: packets are read to the end and compared, not their headers alone; those that no
        entry names, too, for preambles of earlier versions' stores are among them.
      progress: told of each file then, for it takes time.

    Raises FileNotFoundError where there is no store.
    """
    store.check_exists(folder)
    look = functools.cache(functools.partial(_look, folder, every_byte))  # packets may be shared
    owns = (own for root in (DOCUMENTS, OPENINGS) for own in folder.glob(f"{root}/*"))
    found = [entry for own in owns for entry in _entries(own)]
    found = progress.track(found, "Verifying documents") if every_byte else found
    rows = [row for entry in found if (row := _row(entry, key, look)) is not None]
    documents = [row for row in rows if row.problem or not row.is_preamble]
    if every_byte:
        names = {path.stem for path in folder.glob(f"{PACKETS}/*.safetensors")}
        others = sorted(names - {row.packet for row in rows})
        for name in progress.track(others, "Verifying other packets"):
            if problem := look(name, "").problem:
                blank = StoredDocument(f"({name[:16]}…)", Names("?", "?"), "?", name, 0, 0)
                documents.append(blank._replace(problem=problem))
    return sorted(documents, key=lambda d: (d.is_opening, d.names, d.dtype, d.compressor, d.id))


def _entries(own: pathlib.Path) -> list[_Found]:
    """The entries of a provenance; none where it was just begun."""
    paths = [path for path in own.glob("*.json") if path.name != PROVENANCE]
    paths += [path for path in (own / PREAMBLE,) if path.exists()]
    if not paths:
        return []
    names, dtype, problem = Names(f"{own.name[:16]}…", "?"), "?", f"{PROVENANCE} damaged"
    compressor, made_by = UNCOMPRESSED, ""
    with contextlib.suppress(Damaged):
        fields = entries.read_provenance(own / PROVENANCE)
        names, dtype, problem = names_in(fields), fields["dtype"], ""
        compressor, made_by = compressor_in(fields), _made_by(fields)
        # Stores written before names were kept have digests only.
        names = names._replace(
            model=names.model or fields["model"][:16],
            parts=names.parts if names.shown_adapter else fields["adapter"][:16],
        )
    blank = StoredDocument("", names, dtype, "", 0, 0, problem, compressor, build=own.name)
    blank = blank._replace(is_opening=own.parent.name == OPENINGS)
    return [_Found(path, blank, made_by) for path in paths]


def _made_by(fields: dict) -> str:
    """A digest of a provenance, without a primer that was chosen for each packet."""
    return digest({k: v for k, v in fields_alone(fields).items() if k != "primer"})


def _row(
    found: _Found, key: bytes | None, look: Callable[[str, str], _Looked]
) -> StoredDocument | None:
    """What is listed of an entry; None for one that has just gone."""
    path, blank, made_by = found
    if is_preamble := path.name == PREAMBLE:
        blank = blank._replace(id="(the preamble)", is_preamble=True)
    try:
        fields = entries.read_fields(path)
    except Damaged:
        return blank._replace(id=blank.id or f"{path.name[:16]}…", problem="entry damaged")
    if fields is None:
        return None
    id = blank.id if is_preamble else fields["id"]
    row = blank._replace(id=id, packet=fields["packet"], has_signature=entries.SIGNATURE in fields)
    if key is not None and not entries.is_signed(path, fields, key):
        return row._replace(problem=UNSIGNED)
    if row.problem:
        return row
    looked = look(fields["packet"], fields.get("seal", ""))
    if not looked.problem and looked.made_by != made_by:
        return row._replace(problem="entry damaged")
    known = looked._asdict()
    del known["made_by"]
    return row._replace(**known)


def _look(folder: pathlib.Path, every_byte: bool, name: str, seal: str) -> _Looked:
    path = packet_path(folder, name)
    try:
        num_bytes = path.stat().st_size
        manifest = packet_file.read_manifest(folder, name, seal, every_byte)
    except FileNotFoundError:
        return _Looked(problem="missing")
    except Damaged:
        return _Looked(num_bytes, "damaged")
    except OSError as error:
        return _Looked(problem=f"unreadable: {error.strerror}")
    read_by = digest({field: manifest[field] for field in ("tokenizer", "template")})
    tokens = manifest["tokens"]
    return _Looked(num_bytes, "", _made_by(manifest), len(tokens), read_by, digest(tokens))
