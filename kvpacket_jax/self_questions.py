"""Questions that a model writes about a document and answers itself, for training.

Two passes over each document: the model goes on from several beginnings of a question, then it
answers the questions as an evaluation asks them, with the document alone in its context. Stored are
those whose answer is short and stands in the document, word for word. Among other documents the
model may answer otherwise: in training such answers count less (`wrong_weight`).
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from kvpacket_jax import teacher
from kvpacket_jax.data import TEMPLATES, Example, Question, encode_example, json_lines, passages
from kvpacket_jax.data.examples import INSTRUCTION
from kvpacket_jax.data.passages import stands_in
from kvpacket_jax.packets.generate import check_finite, stop_array
from models import LanguageModel

WRITER = "You write questions about texts."
REQUEST = (
    "Write one short question that this text answers with a name, a number or a short phrase. "
    "The question names what it is about, so that it is clear without the text."
)
# Chosen for what they yield: of "Where" and "What happens if" not one question in seven is kept.
STARTS = (
    "What is the name of",
    "What is the default",
    "Which",
    "How many",
    "Who",
    "When",
    "In which",
    "What type of",
)
VAGUE = re.compile(  # words of questions that could be about any of several documents
    r"\b(the|this|given|provided)( \S+)? (text|document|passage|question|snippet)\b(?! f)"
    r"|\bthis\?|\bis this\b|\bthe author\b(?! of)|\bthe (following|given|provided)\b"
    r"|\bmentioned\b|\baccording to\b",
    re.I,
)
NUMBER = re.compile(
    r"(?!(19|20)\d\d\b)\d[\d,]*(\.\d+)?(?![.\w])|(one|two|three|four|five|six|seven|eight|nine|ten)\b",
    re.I,
)
QUESTION_WORDS, ANSWER_WORDS = (5, 30), (1, 12)
ANSWER_CHARACTERS = 2  # at least: one digit stands in most texts, whatever was asked
RECORD = b'{"id": "'  # what a line of `Written.record` begins with
QUESTION_TOKENS, ANSWER_TOKENS = 20, 14  # that are generated, at most: a batch waits for the last


class Written(NamedTuple):
    """A document's questions with their answers, and how many the model wrote."""

    id: str
    text: str
    questions: list[Question]
    tried: int

    def record(self) -> dict:
        questions = [{"text": q.text, "answers": list(q.answers)} for q in self.questions]
        return {"id": self.id, "text": self.text, "questions": questions}


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes questions with a chat model, by two programs for each of `lengths`.

    Args:
      size: E, documents computed at once.
      lengths: C, tokens of a document with what stands before it and the request after it.
      starts: R, tokens of the start of a question.
      row: R, tokens of a whole question as it is asked; longer ones are left out.
    """

    model: LanguageModel
    size: int = 4
    lengths: tuple[int, ...] = (192, 320, 512)
    starts: int = 16
    row: int = 36

    def write(self, documents: Iterable[tuple[str, str]]) -> Iterator[Written]:
        """The questions about each (id, text), documents of similar length together.

        Documents that are longer than all `lengths` are asked about as far as whole sentences fit
        (training cuts them too, to lengths of its own); one whose first sentence does not fit has
        no question.
        Raises ValueError for a model whose logits are not finite.
        """
        waiting = {length: [] for length in self.lengths}
        for name, whole in documents:
            text = passages.beginning(whole, lambda t: self._length(t) is not None)
            if not text:
                yield Written(name, whole, [], 0)
                continue
            length = self._length(text)
            waiting[length].append((name, text, whole))
            if len(waiting[length]) == self.size:
                yield from self._write_batch(waiting[length], length)
                waiting[length] = []
        for length, rest in waiting.items():
            if rest:
                yield from self._write_batch(rest, length)

    def _length(self, text: str) -> int | None:
        needed = max(len(self._request(text)[0]), len(_context(self._asked(text, []))))
        return min((length for length in self.lengths if length >= needed), default=None)

    def _request(self, text: str) -> tuple[list[int], list[list[int]]]:
        """Context and rows of the writing pass; the request is read once, with the document."""
        tokenizer, chat = self.model.tokenizer, TEMPLATES["chat"]
        before, closing = chat.frame(tokenizer, WRITER)
        context = tokenizer.encode(before, special=True)
        context += tokenizer.encode(chat.document_text(text) + REQUEST)
        context += tokenizer.encode(closing, special=True)
        return context, [tokenizer.encode(f"Question: {s}") for s in STARTS]

    def _asked(self, text: str, questions: Sequence[str]):
        example = Example("", (text,), tuple(Question(q, ()) for q in questions), INSTRUCTION)
        return encode_example(self.model.tokenizer, TEMPLATES["chat"], example)

    def _write_batch(self, batch: list[tuple[str, str, str]], length: int) -> Iterator[Written]:
        """Of (id, the part that is asked about, the whole text)."""
        requests = [self._request(text) for _, text, _ in batch]
        endings = self._run(requests, length, self.starts, QUESTION_TOKENS, "?\n")
        asked = [
            sensible([s + ending for s, ending in zip(STARTS, texts, strict=True)])
            for texts in endings
        ]
        encoded = [self._asked(text, q) for (_, text, _), q in zip(batch, asked, strict=True)]
        rows = [(_context(e), e.questions) for e in encoded]
        answers = self._run(rows, length, self.row, ANSWER_TOKENS, "\n")
        for (name, text, whole), questions, said in zip(batch, asked, answers, strict=True):
            yield Written(name, whole, confirmed(text, questions, said), len(STARTS))

    def _run(self, inputs, C: int, R: int, new_tokens: int, ends: str) -> list[list[str]]:
        """What the model says after each row of each (context, rows), to the first of `ends`.

        Empty if it does not end, or for a row of more than R tokens.
        """
        stops, decode = stop_array(self.model, None), self.model.tokenizer.decode
        vocabulary = self.model.config.vocab_size
        stops = _ids_with(self.model.tokenizer, vocabulary, ends, tuple(stops.tolist()))
        arrays = _padded(inputs, self.size, C, R)
        answers = _answer(
            self.model.module, self.model.params, *arrays, stops, new_tokens=new_tokens
        )
        tokens, lengths = np.asarray(answers.tokens), np.asarray(answers.lengths)
        check_finite(self.model, tokens)

        def said(e: int, q: int, row: list[int]) -> str:
            ids = tokens[e, q, : lengths[e, q]].tolist()
            return decode(ids) if len(row) <= R and ids[-1] in stops else ""

        return [
            [said(e, q, row) for q, row in enumerate(rows)] for e, (_, rows) in enumerate(inputs)
        ]


def _padded(inputs, E: int, C: int, R: int) -> tuple[np.ndarray, ...]:
    """int32 contexts `[E, C]` and rows `[E, Q, R]`, each with lengths.

    Where there is no row, or one that is too long, stands another: it ends when that does.
    """
    Q = len(STARTS)
    contexts, context_lengths = np.zeros((E, C), np.int32), np.ones(E, np.int32)
    rows, row_lengths = np.zeros((E, Q, R), np.int32), np.ones((E, Q), np.int32)
    spare = next((row for _, given in inputs for row in given if len(row) <= R), [0])
    for e in range(E):
        context, given = inputs[e] if e < len(inputs) else inputs[0]
        contexts[e, : len(context)], context_lengths[e] = context, len(context)
        for q in range(Q):
            row = given[q] if q < len(given) and len(given[q]) <= R else spare
            rows[e, q, : len(row)], row_lengths[e, q] = row, len(row)
    return contexts, context_lengths, rows, row_lengths


@functools.lru_cache(maxsize=4)  # of tokenizers: by models it would keep their weights in memory
def _ids_with(tokenizer, vocabulary: int, marks: str, stops: tuple[int, ...]) -> np.ndarray:
    """int32: the tokens that have one of the marks in them, and `stops`."""
    with_mark = (i for i in range(vocabulary) if set(marks) & set(tokenizer.decode([i])))
    return np.array(sorted({*stops, *with_mark}), np.int32)


@functools.partial(jax.jit, static_argnames=("module", "new_tokens"))
def _answer(module, params, *arrays, new_tokens: int):
    # The hidden states are not read: without them in the output they cost nothing.
    return teacher.answer_batch(module, params, *arrays, new_tokens=new_tokens)


def _context(encoded) -> list[int]:
    return [*encoded.preamble, *encoded.documents[0]]


def sensible(questions: Sequence[str]) -> list[str]:
    """The questions that are whole, of QUESTION_WORDS, clear among several documents, once each."""
    chosen = []
    for question in questions:
        head, mark, _ = question.partition("?")
        text = " ".join(head.split()) + mark
        words = len(text.split())
        fits = QUESTION_WORDS[0] <= words <= QUESTION_WORDS[1]
        if (
            mark
            and "\n" not in head.strip()
            and fits
            and not VAGUE.search(text)
            and text not in chosen
        ):
            chosen.append(text)
    return chosen


def confirmed(text: str, questions: Sequence[str], answers: Sequence[str]) -> list[Question]:
    """The questions whose answer is of ANSWER_WORDS and stands in the text, not in the question.

    One question for each answer.
    """
    chosen = []
    for question, said in zip(questions, answers, strict=True):
        answer = TEMPLATES["chat"].answer(Question(question, ()), said).removesuffix(".")
        least, most = ANSWER_WORDS
        if not least <= len(answer.split()) <= most or len(answer) < ANSWER_CHARACTERS:
            continue
        if question.startswith("How many") and not NUMBER.match(answer):
            continue
        known = {q.answers[0].lower() for q in chosen}
        right = stands_in(answer, text) and not stands_in(answer, question)
        if right and answer.lower() not in known:
            chosen.append(Question(question, (answer,)))
    return chosen


def finished(path: pathlib.Path) -> dict[str, str]:
    """The documents that a file of records has: their texts by their ids.

    The beginning of a record at its end, where a run was killed, is removed: readers refuse it.
    Makes the folder if there is none. Raises ValueError that names a line that is no record.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return {}
    fields = ("id", "text", "questions")
    found = list(json_lines.read(path, fields, lambda _, record: (record["id"], record["text"])))
    content = path.read_bytes()
    cut = content[content.rfind(b"\n") + 1 :]
    if cut and isinstance(found[-1][1], ValueError) and cut.startswith(RECORD[: len(cut)]):
        found.pop()
    else:
        cut = b""
    for number, what in found:
        if isinstance(what, ValueError):
            raise ValueError(
                f"{path}, line {number}: {what}. Remove the line, and its document is asked again; "
                "or choose another --output."
            ) from what
    if cut:  # everything before it is a record: the file is one of ours
        os.truncate(path, len(content) - len(cut))
    return dict(what for _, what in found)
