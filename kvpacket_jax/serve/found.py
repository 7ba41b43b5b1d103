"""Documents of a store, found before they are read: which packets questions about them need."""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from kvpacket_jax import similarity
from kvpacket_jax.compress import Compressor
from kvpacket_jax.methods import METHODS, Method, settings
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.packet import Provenance
from kvpacket_jax.runtime import names as known_names
from kvpacket_jax.serve import identity
from kvpacket_jax.serve.identity import Wording
from kvpacket_jax.serve.primers import FromCorpus
from kvpacket_jax.serve.resident import Resident
from kvpacket_jax.storage import packet_file, store
from kvpacket_jax.storage.packet_file import (
    Damaged,
    DamagedFile,
    Entry,
    MissingFile,
    Wanted,
    packet_path,
)
from models import LanguageModel

BARE = "no_recompute"  # packets built without an adapter
READ_PACKETS = ("kv_packet", BARE)
# A wrong answer may be the model's: these answer without packets, of the documents only the token
# ids are read from the store.
WITHOUT_PACKETS = ("full_recompute", "no_cache")
WHY_NOT = {
    "primed": "kv_packet reads packets that were built with --adapter=primer",
    "single_cache": "its one cache is of these documents in this order, no packet of each",
}


class Found(NamedTuple):
    """Documents that questions can be asked about, and what answers."""

    model: LanguageModel
    wording: Wording
    method: Method
    reads_packets: bool
    folder: pathlib.Path
    ids: tuple[str, ...]
    entries: list[Entry]
    provenance: Provenance
    opening: Provenance | None  # of the packets they have where they come first; bare ones: None
    preamble: list[Wanted]  # one, or none
    key: bytes | None
    resident: Resident

    @property
    def reads_none(self) -> bool:
        return isinstance(self.method, METHODS["no_cache"])

    def tokens(self, i: int) -> list[int]:
        """The token ids of a document. Raises as `session.read`."""
        entry = self.entries[i]
        with naming_documents([self.ids[i]], [packet_path(self.folder, entry.packet)]):
            return packet_file.read_manifest(self.folder, *entry)["tokens"]

    def text(self, i: int) -> str:
        """A document as it was put into the template."""
        decode = self.model.tokenizer.decode
        return self.resident.text(self.entries[i], lambda: decode(self.tokens(i)))


def check_method(name: str) -> None:
    """Raises ValueError for a method that does not answer from a store, saying why."""
    known = (*READ_PACKETS, *WITHOUT_PACKETS)
    if name in METHODS and name not in known:
        why = WHY_NOT.get(name, "it runs tokens of the documents through the model every time")
        raise ValueError(
            f"{name} does not answer from a store's packets: {why}. {' and '.join(READ_PACKETS)} "
            f"do; {' and '.join(WITHOUT_PACKETS)} show what the model answers without them; "
            "launch.evaluate compares them all."
        )
    known_names.check(name, known, "method")


def check_documents(folder: pathlib.Path, ids: Sequence[str]) -> None:
    """Refuses what can be seen to be wrong with a store and ids before a model is loaded.

    Raises:
      FileNotFoundError: no such store.
      ValueError: no document is named, or one that the store does not hold.
    """
    store.check_exists(folder)
    store.check_ids(folder, ids)


def find(
    model: LanguageModel,
    folder: pathlib.Path,
    ids: Sequence[str],
    wording: Wording,
    method: str = "kv_packet",
    adapter: Adapter | None = None,
    adapter_name: str | None = None,
    choice: FromCorpus | None = None,
    compressor: Compressor | None = None,
    key: bytes | None = None,
    resident: Resident = Resident(0),
    provenance: Provenance | None = None,
) -> Found:
    """Documents, in their order; of their packets nothing is read yet.

    Args:
      method: of READ_PACKETS, or of WITHOUT_PACKETS: those take the documents' token ids from the
        packets built with `adapter`, and only the preamble's cache.
      adapter_name, choice: with `adapter` the Maker of the packets; the name is for messages.
      compressor: of the documents' packets.
      key: documents whose entries are not signed with it are refused.
      resident: keeps what is read between sessions.
      provenance: that of packets made with all of this, if it is known: it is a digest of the
        whole adapter.

    Raises:
      ValueError: a method that answers from no store, documents that are not there or were built by
        another model, tokenizer, template, adapter or compressor.
      FileNotFoundError: no such store, or no packet of the preamble.
      Damaged: naming the entry.
    """
    check_method(method)
    check_documents(folder, ids)
    without = method in WITHOUT_PACKETS
    reader = settings.make(method, adapter)[1]
    made_with = adapter if without else reader.adapter
    if provenance is None or made_with is not adapter:
        provenance = identity.document_provenance(model, made_with, wording, choice, compressor)
    names = identity.names_of(model, made_with, wording, adapter_name)
    entries = store.find(folder, provenance, ids, names, key)
    preamble = _preamble(model, folder, wording, key)
    opening = None
    if made_with is not None:
        opening = identity.opening_provenance(model, provenance, wording)
    asked = model, wording, reader, not without, folder, tuple(ids), entries, provenance, opening
    return Found(*asked, preamble, key, resident)


def closest(found: Found, question: str) -> int:
    """The document to be read first: the one most like the question.

    Of the document that comes first nothing is lost. So that is the first one as they are given
    where the other has no packet of its own for that: of bare packets, or without openings.
    """
    if len(found.ids) == 1 or found.opening is None or found.reads_none:
        return 0
    first = similarity.closest_to([found.text(i) for i in range(len(found.ids))], question)
    return first if opening_of(found, first) else 0


def opening_of(found: Found, i: int) -> Wanted | None:
    """The packet that a document has for where it comes first, of its present text; None without.

    Raises Damaged, naming the entry.
    """
    if found.opening is None:
        return None
    tokens = found.tokens(i)
    name = packet_file.packet_name(found.opening, tokens, len(tokens))
    entry = store.find_opening(found.folder, found.opening, found.ids[i], name, found.key)
    return None if entry is None else Wanted(entry.packet, found.opening, entry.seal)


def _preamble(
    model: LanguageModel, folder: pathlib.Path, wording: Wording, key: bytes | None
) -> list[Wanted]:
    """The preamble's packet as `packet_file.load` takes it; none where a template has no token."""
    provenance, item = identity.preamble_item(model, wording)
    if item is None:
        return []
    if not packet_path(folder, item.name).exists():
        raise FileNotFoundError(
            f"{folder} has no packet of the preamble {wording.instruction!r}. Give --preamble "
            "and --template as they were given to launch.build_packets, or run it with these: "
            "it keeps the documents that are there."
        )
    entry = store.find_preamble(folder, provenance, item.name, key)
    return [Wanted(entry.packet, provenance, entry.seal)]


@contextlib.contextmanager
def naming_documents(ids: Sequence[str], paths: Sequence[pathlib.Path]):
    """Says of a document's file that is missing or damaged whose it is; the preamble has no id."""
    try:
        yield
    except (MissingFile, DamagedFile) as error:
        if error.path not in paths:
            raise
        kind = FileNotFoundError if isinstance(error, MissingFile) else Damaged
        raise kind(f"Document {ids[paths.index(error.path)]!r}: {error}") from error
