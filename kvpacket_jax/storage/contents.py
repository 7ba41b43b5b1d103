"""What a store holds, and whether it is whole; needs no model."""

import contextlib
import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from kvpacket_jax.runtime.progress import SILENT, Progress
from kvpacket_jax.storage import entries, packet_file, store
from kvpacket_jax.storage.entries import PREAMBLE, PROVENANCE
from kvpacket_jax.storage.packet_file import Damaged, packet_path
from kvpacket_jax.storage.provenance import UNCOMPRESSED, Names, compressor_in, names_in
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
    problem: str = ""  # "missing", "damaged", UNSIGNED or which file is damaged
    compressor: str = UNCOMPRESSED  # with its settings
    is_preamble: bool = False
    build: str = ""  # a digest of its provenance
    read_by: str = ""  # a digest of tokenizer and template: only what they read alike is compared
    text: str = ""  # a digest of its tokens


def read(
    folder: pathlib.Path,
    key: bytes | None = None,
    every_byte: bool = False,
    progress: Progress = SILENT,
) -> list[StoredDocument]:
    """The documents of a store by model, adapter and id.

    A preamble is listed where something is wrong with it, for no answer goes without. Of entries
    that are not signed with `key` that is said, and nothing read of their packets; of a damaged
    entry the file stands for the id, of a damaged provenance its folder for the names.

    Args:
      every_byte: whether packets are read to the end and compared, or their headers alone.
      progress: told of each entry where packets are read to the end, which takes time.

    Raises FileNotFoundError where there is no store.
    """
    store.check_exists(folder)
    found = [entry for own in folder.glob("documents/*") for entry in _entries(own)]
    if every_byte:
        found = progress.track(found, "Verifying")
    look = functools.partial(packet_file.read_manifest, folder, every_byte=every_byte)
    look = functools.cache(look)  # documents may share a packet
    rows = filter(None, (_row(folder, path, blank, key, look) for path, blank in found))
    documents = [row for row in rows if row.problem or not row.is_preamble]
    return sorted(documents, key=lambda d: (d.names, d.dtype, d.compressor, d.id))


def _entries(own: pathlib.Path) -> list[tuple[pathlib.Path, StoredDocument]]:
    """The entries of a provenance, and what it says of them; none where it was just begun."""
    paths = [path for path in own.glob("*.json") if path.name != PROVENANCE]
    paths += [path for path in (own / PREAMBLE,) if path.exists()]
    if not paths:
        return []
    names, dtype, problem = Names(f"{own.name[:16]}…", "?"), "?", f"{PROVENANCE} damaged"
    compressor = UNCOMPRESSED
    with contextlib.suppress(Damaged):
        fields = entries.read_provenance(own / PROVENANCE)
        names, dtype, problem = names_in(fields), fields["dtype"], ""
        compressor = compressor_in(fields)
        # Stores written before names were kept have digests only.
        names = names._replace(
            model=names.model or fields["model"][:16],
            parts=names.parts if names.shown_adapter else fields["adapter"][:16],
        )
    blank = StoredDocument("", names, dtype, "", 0, 0, problem, compressor, build=own.name)
    return [(path, blank) for path in paths]


def _row(
    folder: pathlib.Path,
    path: pathlib.Path,
    blank: StoredDocument,
    key: bytes | None,
    look: Callable[[str, str], dict],
) -> StoredDocument | None:
    """What is listed of an entry; None for one that has just gone."""
    if is_preamble := path.name == PREAMBLE:
        blank = blank._replace(id="(the preamble)", is_preamble=True)
    try:
        fields = entries.read_fields(path)
    except Damaged:
        return blank._replace(id=blank.id or f"{path.name[:16]}…", problem="entry damaged")
    if fields is None:
        return None
    id = blank.id if is_preamble else fields["id"]
    row = blank._replace(id=id, packet=fields["packet"])
    if key is not None and not entries.is_signed(path, fields, key):
        return row._replace(problem=UNSIGNED)
    return row if row.problem else _of_packet(folder, row, fields.get("seal", ""), look)


def _of_packet(
    folder: pathlib.Path, row: StoredDocument, seal: str, look: Callable[[str, str], dict]
) -> StoredDocument:
    """With what `look` finds in its packet, given name and seal."""
    path = packet_path(folder, row.packet)
    try:
        manifest = look(row.packet, seal)
        tokens = manifest["tokens"]
        return row._replace(
            tokens=len(tokens),
            num_bytes=path.stat().st_size,
            read_by=digest({name: manifest[name] for name in ("tokenizer", "template")}),
            text=digest(tokens),
        )
    except FileNotFoundError:
        return row._replace(problem="missing")
    except Damaged:
        return row._replace(problem="damaged", num_bytes=path.stat().st_size)
