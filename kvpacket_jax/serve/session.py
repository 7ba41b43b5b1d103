"""Answers from a store: packets of named documents become a context for any number of questions."""

import contextlib
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from kvpacket_jax import adapters, answer_text
from kvpacket_jax.adapters import card
from kvpacket_jax.answer_text import Said
from kvpacket_jax.compress import Compressor, shortened
from kvpacket_jax.data import Question
from kvpacket_jax.measure import cost
from kvpacket_jax.methods import METHODS, Method, Request, settings
from kvpacket_jax.methods.base import Prepared
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import COARSE
from kvpacket_jax.packets.generate import stream
from kvpacket_jax.packets.packet import Packet, Provenance
from kvpacket_jax.packets.prefill import Context, prefill
from kvpacket_jax.runtime import names as known_names
from kvpacket_jax.runtime import sealed
from kvpacket_jax.serve import identity, primers
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
ROWS = 8  # questions answered at once
WHY_NOT = {
    "primed": "kv_packet reads packets that were built with --adapter=primer",
    "single_cache": "its one cache is of these documents in this order, no packet of each",
}


class Session(NamedTuple):
    """Documents that questions can be asked about."""

    model: LanguageModel
    wording: Wording
    method: Method
    folder: pathlib.Path
    wanted: list[Wanted]  # the preamble's first, if there is one
    packets: list[Packet]
    num_preamble: int  # packets of the preamble, 0 or 1
    context: Context
    start: int  # position of a question's first token
    # The documents read in full, once for all questions that need it; None without packets, and
    # where they are as good.
    full: Callable[[], Prepared] | None

    @property
    def num_tokens(self) -> int:
        """Of the documents that were read as packets, as they were tokenised."""
        return sum(len(packet.manifest.tokens) for packet in self.apart()[1])

    def apart(self) -> tuple[list[Packet], list[Packet]]:
        """The preamble's packet, if there is one, and the documents', if packets are read."""
        return self.packets[: self.num_preamble], self.packets[self.num_preamble :]


class Reply(NamedTuple):
    """An answer, and how sure the model was of it."""

    text: str
    confidence: float  # answer_text.confidence
    reread: bool  # from the documents read in full, for packets left too much doubt


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


def check_question(question: str) -> None:
    """Raises ValueError for a question that is empty or not UTF-8."""
    if not question.strip():
        raise ValueError("The question is empty: ask about the documents.")
    known_names.check_utf8(question, "The question")


def check_documents(folder: pathlib.Path, ids: Sequence[str]) -> None:
    """Refuses what can be seen to be wrong with a store and ids before a model is loaded.

    Raises:
      FileNotFoundError: no such store.
      ValueError: no document is named, or one that the store does not hold.
    """
    store.check_exists(folder)
    store.check_ids(folder, ids)


def open_session(
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
) -> Session:
    """Reads the packets of documents, in their order, and lays them side by side.

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
        another model, tokenizer, template, adapter or compressor; a context longer than the
        model's.
      FileNotFoundError, Damaged: naming the packet's file.
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
    wanted = _preamble(model, folder, wording, key)
    num_preamble, documents = len(wanted), []
    if not without:
        wanted += [Wanted(entry.packet, provenance, entry.seal) for entry in entries]
        by = identity.opening_provenance(model, provenance, wording)
        if made_with is not None and (first := _opening(folder, by, ids[0], entries[0], key)):
            wanted[num_preamble] = first
    files = [w.name for w in wanted[num_preamble:]] or [entry.packet for entry in entries]
    with _naming_documents(ids, [packet_path(folder, name) for name in files]):
        if without:
            documents = [packet_file.read_manifest(folder, *e)["tokens"] for e in entries]
        packets = resident(folder, wanted, model)
    if method == cost.FULL:
        ready = _in_full(model, packets, documents, resident)
    else:
        # Seals vouch for it: the same documents in the same order lie there already.
        arrange = lambda: reader.arrange(model, packets)  # noqa: E731
        stored = arrange() if without else resident.laid(tuple(wanted), arrange)
        ready = reader.shared_context(model, stored, Request([], documents, []))
    asked = model, wording, reader, folder, wanted, packets, num_preamble
    opened = Session(*asked, ready.context, ready.query_start, None)
    if without:
        return opened
    preamble, documents = opened.apart()
    if len(documents) == 1 and documents[0].manifest.place and compressor is None:
        return opened  # its packet is what reading it in full gives
    ids_of = [packet.manifest.tokens for packet in documents]
    full = functools.cache(lambda: _in_full(model, preamble, ids_of, resident))
    return opened._replace(full=full)


def _opening(
    folder: pathlib.Path, provenance: Provenance, id: str, entry: Entry, key: bytes | None
) -> Wanted | None:
    """The packet of a document that comes first, of the text that `entry` is of; None without."""
    with _naming_documents([id], [packet_path(folder, entry.packet)]):
        tokens = packet_file.read_manifest(folder, *entry)["tokens"]
    name = packet_file.packet_name(provenance, tokens, len(tokens))
    found = store.find_opening(folder, provenance, id, name, key)
    return None if found is None else Wanted(found.packet, provenance, found.seal)


@contextlib.contextmanager
def _naming_documents(ids: Sequence[str], paths: Sequence[pathlib.Path]):
    """Says of a document's file that is missing or damaged whose it is; the preamble has no id."""
    try:
        yield
    except (MissingFile, DamagedFile) as error:
        if error.path not in paths:
            raise
        kind = FileNotFoundError if isinstance(error, MissingFile) else Damaged
        raise kind(f"Document {ids[paths.index(error.path)]!r}: {error}") from error


def _in_full(
    model: LanguageModel,
    preamble: list[Packet],
    documents: Sequence[Sequence[int]],
    resident: Resident,
) -> Prepared:
    """The token ids of documents read in full, if they are not resident.

    The sizes are coarse, for a program takes longer to compile than a quarter more rows to run.
    """
    method = METHODS[cost.FULL](buckets=COARSE)
    tokens = (*(packet.manifest.tokens for packet in preamble), *map(tuple, documents))

    def read() -> Prepared:  # to the end: what failed is not kept
        return jax.block_until_ready(
            method.shared_context(model, preamble, Request([], documents, []))
        )

    return resident.read(tokens, read)


def remark(session: Session, adapter_name: str, least: float, recompute_below: float = 0.0) -> str:
    """What the adapter's card says of these documents, as `card.remark`; "" if that is nothing.

    Nothing is said where bare packets were asked for, nor of answers that read none, nor of a
    document alone whose packet is as good as reading it; of compressed ones, that no card is of
    them.
    """
    if session.full is None or isinstance(session.method, METHODS[BARE]):
        return ""
    adapter, model = session.method.adapter, session.model
    if adapter is None:
        return "These packets are bare: they lack what documents would have read of each other."
    documents = session.apart()[1]
    if by := documents[0].manifest.compressor:
        return f"No card says how well packets answer if compressed by {shortened(by)}."
    if documents[-1].manifest.primer or primers.is_replaced(adapter_name):
        return "No card says how well packets with a primer of their own answer."
    lengths = [len(packet.manifest.tokens) for packet in documents]
    try:
        path = adapters.card_path(model, adapter_name, session.wording.name)
        known = card.read(path, adapter)
    except sealed.Damaged as error:  # a card is advice: answers are as good without it
        return f"How good packets are here is not known: {error}"
    same = known is not None and known.model_fingerprint == model.fingerprint
    request = session.wording.name, len(lengths), max(lengths)
    name = known.model if same else model.name
    opening = bool(documents[0].manifest.place)
    return card.remark(known, adapter_name, name, *request, least, recompute_below, opening)


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


def answer(session: Session, text: str, new_tokens: int = 32) -> Iterator[str]:
    """The answer to a question, piece by piece as it is decoded, however sure the model is of it.

    With a template that reasons first `new_tokens` are the answer's alone.

    Raises ValueError for a question that `check_question` refuses, or that does not fit after the
    documents.
    """
    check_question(text)
    model, question, template = session.model, Question(text, ()), session.wording.template
    new_tokens = template.budget(new_tokens)
    ids = identity.encode(model, session.wording, question).questions
    ready = prefill(model, session.context, ids, session.start, new_tokens)
    blocks = (fresh.tokens[0] for fresh in stream(model, session.context, ready, new_tokens))
    yield from answer_text.pieces(blocks, model.tokenizer.decode, template, question)


def answer_all(
    session: Session,
    texts: Sequence[str],
    new_tokens: int = 32,
    recompute_below: float = 0.0,
    on_doubt: Callable[[Sequence[Said]], None] = lambda doubtful: None,
) -> list[Reply]:
    """The answers to questions, ROWS of them at once: rows over the one context.

    For each token the weights are read once, whatever the number of rows.

    Args:
      texts: that `check_question` lets pass.
      recompute_below: answers from packets of a lower confidence are given from the documents read
        in full instead. 0: none.
      on_doubt: called with those answers before the documents are read.

    Raises ValueError for a question that does not fit after the documents, before any is answered;
    and where the documents, read in full, do not fit the device.
    """
    said = _decode(session, session.context, session.start, texts, new_tokens)
    replies = [Reply(*each, False) for each in said]
    doubtful = [i for i, each in enumerate(said) if each.confidence < recompute_below]
    if doubtful and session.full is not None:
        on_doubt([said[i] for i in doubtful])
        try:
            full = session.full()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ValueError(
                "The documents do not fit the device in full, to answer what is in doubt: "
                f"{error}. --recompute_below=0 (recompute_below=0 in Python) takes the answers "
                "that packets give."
            ) from error
        asked = [texts[i] for i in doubtful]
        again = _decode(session, full.context, full.query_start, asked, new_tokens)
        for i, each in zip(doubtful, again, strict=True):
            replies[i] = Reply(*each, True)
    return replies


def _decode(
    session: Session, context: Context, start: int, texts: Sequence[str], new_tokens: int
) -> list[Said]:
    model, template = session.model, session.wording.template
    new_tokens = template.budget(new_tokens)
    questions = [Question(text, ()) for text in texts]
    encoded = [identity.encode(model, session.wording, q).questions[0] for q in questions]
    longest = max(map(len, encoded), default=0)
    model.check_length(start + longest + new_tokens)
    said: list[Said] = []
    for first in range(0, len(texts), ROWS):
        rows = slice(first, first + ROWS)
        ready = prefill(model, context, encoded[rows], start, new_tokens)
        said += answer_text.whole(model, context, ready, questions[rows], template, new_tokens)
    return said


def questions() -> Iterator[str]:
    """Lines of standard input until it ends, is interrupted or has "quit" or "exit"; no blank ones.

    At a terminal there is a prompt.
    """
    terminal = sys.stdin.isatty()
    try:
        while (line := input("\nquestion> " if terminal else "").strip()) not in ("quit", "exit"):
            if line:
                yield line
    except (EOFError, KeyboardInterrupt) as error:
        if terminal:
            print()  # the shell's prompt gets a line of its own
        elif isinstance(error, KeyboardInterrupt):  # the rest has no answers
            raise
