"""The small files of a store: a document's entry, which points to its packet, and a provenance."""

import contextlib
import hashlib
import hmac
import json
import pathlib

from kvpacket_jax.packets.packet import Provenance
from kvpacket_jax.runtime import sealed
from kvpacket_jax.storage.packet_file import Damaged, DamagedFile, Entry
from kvpacket_jax.storage.provenance import check_fields, fields_alone, to_fields
from models.identity import digest

# The folders of entries in a store: OPENINGS of the packets that documents have where they come
# first, beside those that they have anywhere.
DOCUMENTS, OPENINGS = "documents", "openings"
PROVENANCE = "provenance.json"
PREAMBLE = "preamble.entry"  # not .json, as the documents' entries are
SIGNATURE = "hmac"  # the field of an entry that is written with a secret
# What an entry may have: with a secret, without one, and as earlier versions wrote it.
ENTRY_KEYS = ({"id", "packet", "seal", SIGNATURE}, {"id", "packet", "seal"}, {"id", "packet"})


def file_name(id: str | None) -> str:
    """The name of a document's entry; None is the preamble."""
    if id is None:
        return PREAMBLE
    # An id may be an address or a sentence, and file systems differ in what they allow.
    return f"{hashlib.sha256(id.encode()).hexdigest()}.json"


def read(path: pathlib.Path, key: bytes | None = None) -> Entry | None:
    """What an entry says, None if there is none; Damaged if it is not signed with the key."""
    fields = read_fields(path)
    if fields is None:
        return None
    if key is not None and not is_signed(path, fields, key):
        how = "with another key, or was changed" if SIGNATURE in fields else "by nobody"
        id = fields["id"]
        of = "the preamble" if id is None else f"document {id!r}"
        raise Damaged(
            f"The entry of {of} is not to be trusted: it is signed {how}, and a key was given. "
            "Give the key that the store was built with, or build the document again with yours. "
            f"({path})"
        )
    return Entry(fields["packet"], fields.get("seal", ""))


def read_fields(path: pathlib.Path) -> dict | None:
    """An entry as it is on disk, None if there is none. Raises Damaged; asks no signature."""
    try:
        fields = json.loads(path.read_bytes())
        if file_name(fields["id"]) != path.name:
            raise ValueError(f"it is of document {fields['id']!r}")
        # One without a seal would pass for an earlier version's.
        if fields.keys() not in ENTRY_KEYS:
            raise ValueError(f"it has {', '.join(map(ascii, sorted(fields)))}")
        if not all(isinstance(x, str) for x in (fields["packet"], fields.get("seal", ""))):
            raise ValueError("it names no packet")
        return fields
    except FileNotFoundError:
        return None
    except sealed.WRONG_JSON as error:
        raise DamagedFile(path, str(error)) from error


def is_signed(path: pathlib.Path, fields: dict, key: bytes) -> bool:
    """Whether the fields of an entry, and its place, are what somebody with the key wrote."""
    entry, found = Entry(fields["packet"], fields.get("seal", "")), fields.get(SIGNATURE)
    if not entry.seal or not isinstance(found, str) or not found.isascii():
        return False
    return hmac.compare_digest(signature(key, path, fields["id"], entry), found)


def signature(key: bytes, path: pathlib.Path, id: str | None, entry: Entry) -> str:
    """HMAC-SHA-256 of an entry and of where it stands, in hexadecimal digits."""
    signed = digest({"provenance": path.parent.name, "id": id, **entry._asdict()})
    return hmac.new(key, signed.encode(), hashlib.sha256).hexdigest()


def read_provenance(path: pathlib.Path) -> dict:
    """The fields of a provenance.json, names among them. Raises Damaged, also where it is gone."""
    try:
        fields = json.loads(path.read_bytes())
        # Earlier versions wrote no digest: the folder's name is that of all but the names.
        if not isinstance(fields, dict) or sealed.KEY in fields:
            fields = sealed.unstamped(fields)
        if digest({k: v for k, v in fields.items() if k != "names"}) != path.parent.name:
            raise ValueError("it is another provenance than its folder's name says")
        check_fields(fields)
        return fields
    except FileNotFoundError:
        raise DamagedFile(path, "it is not there") from None
    except sealed.WRONG_JSON as error:
        raise DamagedFile(path, str(error)) from error


def folder_of(folder: pathlib.Path, provenance: Provenance) -> pathlib.Path:
    """Where the entries of documents with a provenance are."""
    return folder / (OPENINGS if provenance.place else DOCUMENTS) / digest(to_fields(provenance))


def opening_folders(folder: pathlib.Path, provenance: Provenance) -> list[pathlib.Path]:
    """Where the entries are of openings of a build's documents, whatever the preamble."""
    own, found = folder_of(folder, provenance).name, []
    for path in folder.glob(f"{OPENINGS}/*/{PROVENANCE}"):
        with contextlib.suppress(Damaged):
            fields = fields_alone(read_provenance(path))
            if digest({k: v for k, v in fields.items() if k not in ("place", "primer")}) == own:
                found.append(path.parent)
    return found


def ids_in(folder: pathlib.Path, key: bytes | None = None) -> list[str]:
    """Ids of the documents whose entries are in a folder; with `key`, of those signed with it."""
    known = []
    for path in folder.glob("*.json"):
        with contextlib.suppress(Damaged):  # another's damage is not what was asked about
            fields = read_fields(path) if path.name != PROVENANCE else None
            if fields and (key is None or is_signed(path, fields, key)):
                known.append(fields["id"])
    return known
