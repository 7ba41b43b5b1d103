"""Answers from a store: packets of named documents become a context for any number of questions."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from kvpacket_jax import adapters, answer_text, doubt
from kvpacket_jax.adapters import card
from kvpacket_jax.answer_text import Said
from kvpacket_jax.compress import shortened
from kvpacket_jax.data import Question
from kvpacket_jax.measure import cost
from kvpacket_jax.methods import METHODS, Request
from kvpacket_jax.methods.base import Prepared
from kvpacket_jax.packets.buckets import COARSE
from kvpacket_jax.packets.generate import stream
from kvpacket_jax.packets.packet import Packet
from kvpacket_jax.packets.prefill import Context, prefill
from kvpacket_jax.runtime import names as known_names
from kvpacket_jax.runtime import sealed
from kvpacket_jax.serve import identity, primers
from kvpacket_jax.serve.found import BARE, Found, naming_documents, opening_of
from kvpacket_jax.storage.packet_file import Wanted, packet_path

ROWS = 8  # questions answered at once


class Session(NamedTuple):
    """Documents in the order that questions about them are answered in."""

    found: Found
    order: tuple[int, ...]  # of the documents
    wanted: list[Wanted]  # the preamble's first, if there is one
    packets: list[Packet]
    context: Context
    start: int  # position of a question's first token
    # The documents read in full, once for all questions that need it; None without packets, and
    # where they are as good.
    full: Callable[[], Prepared] | None

    @property
    def ids(self) -> tuple[str, ...]:
        """The documents', in this order."""
        return tuple(self.found.ids[i] for i in self.order)

    @property
    def num_tokens(self) -> int:
        """Of the documents that were read as packets, as they were tokenised."""
        return sum(len(packet.manifest.tokens) for packet in self.apart()[1])

    def texts(self) -> list[str]:
        """The documents', in this order, as they were put into the template."""
        return [self.found.text(i) for i in self.order]

    def apart(self) -> tuple[list[Packet], list[Packet]]:
        """The preamble's packet, if there is one, and the documents', if packets are read."""
        number = len(self.found.preamble)
        return self.packets[:number], self.packets[number:]


class Reply(NamedTuple):
    """An answer, and how sure the model was of it."""

    text: str
    confidence: float  # answer_text.confidence
    reread: bool  # from the documents read in full, for packets left too much doubt


class Doubtful(NamedTuple):
    """An answer from packets that is in doubt."""

    text: str
    reason: str  # in words


def check_question(question: str) -> None:
    """Raises ValueError for a question that is empty or not UTF-8."""
    if not question.strip():
        raise ValueError("The question is empty: ask about the documents.")
    known_names.check_utf8(question, "The question")


def read(found: Found, first: int = 0) -> Session:
    """Reads the packets of documents and lays them side by side.

    Args:
      first: the document that comes first; the others follow as they were given.

    Raises:
      ValueError: a context longer than the model's.
      FileNotFoundError, Damaged: naming the packet's file.
    """
    model, method = found.model, found.method
    order = (first, *(i for i in range(len(found.ids)) if i != first))
    wanted, documents = [*found.preamble], []
    if found.reads_packets:
        entries = [found.entries[i] for i in order]
        wanted += [Wanted(e.packet, found.provenance, e.seal) for e in entries]
        wanted[len(found.preamble)] = opening_of(found, first) or wanted[len(found.preamble)]
    else:
        documents = [found.tokens(i) for i in order]
    paths = [packet_path(found.folder, w.name) for w in wanted[len(found.preamble) :]]
    with naming_documents([found.ids[i] for i in order], paths):
        packets = found.resident(found.folder, wanted, model)
    if isinstance(method, METHODS[cost.FULL]):
        ready = _in_full(found, packets, documents)
    else:
        # Seals vouch for it: the same documents in the same order lie there already.
        arrange = lambda: method.arrange(model, packets)  # noqa: E731
        stored = found.resident.laid(tuple(wanted), arrange) if found.reads_packets else arrange()
        ready = method.shared_context(model, stored, Request([], documents, []))
    opened = Session(found, order, wanted, packets, ready.context, ready.query_start, None)
    if not found.reads_packets:
        return opened
    preamble, documents = opened.apart()
    if len(documents) == 1 and documents[0].manifest.place and not found.provenance.compressor:
        return opened  # its packet is what reading it in full gives
    ids_of = [packet.manifest.tokens for packet in documents]
    return opened._replace(full=functools.cache(lambda: _in_full(found, preamble, ids_of)))


def _in_full(found: Found, preamble: list[Packet], documents: Sequence[Sequence[int]]) -> Prepared:
    """The token ids of documents read in full, if they are not resident.

    The sizes are coarse, for a program takes longer to compile than a quarter more rows to run.
    """
    method = METHODS[cost.FULL](buckets=COARSE)
    tokens = (*(packet.manifest.tokens for packet in preamble), *map(tuple, documents))

    def read() -> Prepared:  # to the end: what failed is not kept
        return jax.block_until_ready(
            method.shared_context(found.model, preamble, Request([], documents, []))
        )

    return found.resident.read(tokens, read)


def remark(
    session: Session,
    adapter_name: str,
    least: float,
    recompute_below: float = 0.0,
    best_first: bool = True,
) -> str:
    """What the adapter's card says of these documents, as `card.remark`; "" if that is nothing.

    Nothing is said where bare packets were asked for, nor of answers that read none, nor of a
    document alone whose packet is as good as reading it; of compressed ones, that no card is of
    them.
    """
    if session.full is None or isinstance(session.found.method, METHODS[BARE]):
        return ""
    adapter, model = session.found.method.adapter, session.found.model
    if adapter is None:
        return "These packets are bare: they lack what documents would have read of each other."
    documents = session.apart()[1]
    if by := documents[0].manifest.compressor:
        return f"No card says how well packets answer if compressed by {shortened(by)}."
    if documents[-1].manifest.primer or primers.is_replaced(adapter_name):
        return "No card says how well packets with a primer of their own answer."
    lengths = [len(packet.manifest.tokens) for packet in documents]
    try:
        path = adapters.card_path(model, adapter_name, session.found.wording.name)
        known = card.read(path, adapter)
    except sealed.Damaged as error:  # a card is advice: answers are as good without it
        return f"How good packets are here is not known: {error}"
    same = known is not None and known.model_fingerprint == model.fingerprint
    request = session.found.wording.name, len(lengths), max(lengths)
    name = known.model if same else model.name
    best_first = best_first and bool(documents[0].manifest.place)
    return card.remark(known, adapter_name, name, *request, least, recompute_below, best_first)


def answer(session: Session, text: str, new_tokens: int = 32) -> Iterator[str]:
    """The answer to a question, piece by piece as it is decoded, whether or not it is in doubt.

    With a template that reasons first `new_tokens` are the answer's alone.

    Raises ValueError for a question that `check_question` refuses, or that does not fit after the
    documents.
    """
    check_question(text)
    found, question = session.found, Question(text, ())
    model, template = found.model, found.wording.template
    new_tokens = template.budget(new_tokens)
    ids = identity.encode(model, found.wording, question).questions
    ready = prefill(model, session.context, ids, session.start, new_tokens)
    blocks = (fresh.tokens[0] for fresh in stream(model, session.context, ready, new_tokens))
    yield from answer_text.pieces(blocks, model.tokenizer.decode, template, question)


def answer_all(
    session: Session,
    texts: Sequence[str],
    new_tokens: int = 32,
    recompute_below: float = 0.0,
    on_doubt: Callable[[Sequence[Doubtful]], None] = lambda doubtful: None,
) -> list[Reply]:
    """The answers to questions, ROWS of them at once: rows over the one context.

    For each token the weights are read once, whatever the number of rows.

    Args:
      texts: that `check_question` lets pass.
      recompute_below: answers from packets that are in doubt, as doubt.is_in_doubt has it, are
        given from the documents read in full instead. 0: none.
      on_doubt: called with those answers before the documents are read.

    Raises:
      ValueError: a question that does not fit after the documents, before any is answered; or the
        documents, read in full, do not fit the device.
      FileNotFoundError, Damaged: a document's packet is not what it was when it was read.
    """
    said = _decode(session, session.context, session.start, texts, new_tokens)
    replies = [Reply(*each, False) for each in said]
    doubtful = {}
    if recompute_below and session.full is not None:
        doubtful = _in_doubt(session, texts, said, recompute_below)
    if doubtful:
        on_doubt([*doubtful.values()])
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


def _in_doubt(
    session: Session, texts: Sequence[str], said: Sequence[Said], below: float
) -> dict[int, Doubtful]:
    """The answers that are in doubt, by their numbers."""
    documents, doubtful = session.texts(), {}
    for i, (question, each) in enumerate(zip(texts, said, strict=True)):
        elsewhere = doubt.is_elsewhere(each.text, documents, question)
        if doubt.is_in_doubt(each.confidence, elsewhere, below):
            doubtful[i] = Doubtful(each.text, doubt.reason(each.confidence, elsewhere))
    return doubtful


def _decode(
    session: Session, context: Context, start: int, texts: Sequence[str], new_tokens: int
) -> list[Said]:
    model, template = session.found.model, session.found.wording.template
    new_tokens = template.budget(new_tokens)
    questions = [Question(text, ()) for text in texts]
    encoded = [identity.encode(model, session.found.wording, q).questions[0] for q in questions]
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
