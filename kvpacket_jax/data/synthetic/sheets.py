"""Sheets such as firms hand out: price lists, timetables, who is who, opening hours, data, minutes.

A document is one sheet of one firm, mostly lines of a name and a value in one of many layouts; the
questions ask for a value. An adapter trained on prose alone reads lists and numbers badly.
"""

import dataclasses
import functools

import tensorflow_datasets as tfds

from kvpacket_jax.data import generated
from kvpacket_jax.data.examples import Example, Question
from kvpacket_jax.data.synthetic import biography_words as people
from kvpacket_jax.data.synthetic import sheets_words as words

VERSION = "1.0.0"  # part of every seed: raise it with any change of what is drawn
KINDS = tuple(words.SHEETS)
MIN_LINES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class SheetsConfig(generated.GeneratorConfig):
    """Ranges are a number or (least, most).

    A sheet has at least three lines, and no more than its kind has names for. `same_kind` is how
    often all sheets of an example are of one kind: those are confused.
    """

    num_documents: int | tuple[int, int] = 5
    document_words: int | tuple[int, int] = (30, 60)
    kinds: tuple[str, ...] = KINDS
    same_kind: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        self.make_ranges(num_documents=(1, 10), document_words=(1, 160))
        object.__setattr__(self, "kinds", generated.as_choices("kinds", self.kinds, KINDS))
        if not 0 <= self.same_kind <= 1:
            raise ValueError(f"same_kind={self.same_kind!r} must be from 0 to 1")


@functools.cache
def _pool(split: str, name: str) -> tuple[str, ...]:
    return generated.pool_of(words.POOLS[name], split)


@functools.cache
def firms(split: str) -> tuple[str, ...]:
    """Returns the names that the firms of `split` have, and of no other split."""
    # "The price of Price's Café" is no good question.
    return tuple(n for n in generated.pool_of(people.SURNAMES, split) if n != "Price")


def generate(split: str, index: int, config: SheetsConfig) -> Example:
    """Returns example `index` of `split`. Raises ValueError for an unknown split."""
    rng = generated.example_rng("sheets", VERSION, config, split, index)
    number = rng.randint(*config.num_documents)
    kinds = [rng.choice(config.kinds) for _ in range(number)]
    if rng.random() < config.same_kind:
        kinds = kinds[:1] * number
    names, used = rng.sample(firms(split), number), set()
    others = [n for n in firms(split) if n not in names]
    documents, pairs = [], []
    for i, (kind, surname) in enumerate(zip(kinds, names, strict=True)):
        firm = rng.choice(words.FIRMS[kind]).format(n=surname)
        size = rng.randint(*config.document_words)
        text, facts = _write(rng, split, kind, firm, size, others, used)
        documents.append(text)
        pairs += [(i, kind, firm, name, value) for name, value in facts]
    chosen = rng.sample(pairs, min(config.num_questions, len(pairs)))
    questions = tuple(_ask(rng, *pair) for pair in chosen)
    return Example(f"sheets-{split}-{index}", tuple(documents), questions, config.preamble)


def _write(rng, split, kind: str, firm: str, num_words: int, surnames, used: set[str]):
    """A sheet's text, and the (name, value) of its lines; no value is part of one in `used`."""
    sheet = words.SHEETS[kind]
    notes = rng.sample(sheet.notes, rng.randint(0, min(2, len(sheet.notes))))
    heading = _capitalized(rng.choice(sheet.headings).format(f=firm))
    layout = rng.choice(words.LAYOUTS)
    room = num_words - sum(len(text.split()) for text in (heading, *notes))
    facts: list[tuple[str, str]] = []
    for name in rng.sample(_pool(split, sheet.names), len(_pool(split, sheet.names))):
        while _clashes(value := sheet.value(rng, name, surnames), used):
            pass
        room -= len(layout.format(n=name, v=value).split())
        if room < 0 and len(facts) >= MIN_LINES:
            break
        used.add(_plain(value))
        facts.append((name, value))
    if sheet.sorted:
        names, values = zip(*facts, strict=True)
        facts = list(zip(names, sorted(values), strict=True))
    lines = "\n".join(layout.format(n=_capitalized(name), v=value) for name, value in facts)
    if rng.random() < 0.4:
        heading = heading.upper()
    text = rng.choice(("\n", "\n\n")).join([heading, *notes[:1], lines, *notes[1:]])
    return text, facts


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def _plain(value: str) -> str:
    """A value without its points, which an answer's score does not see."""
    return value.lower().replace(".", "")


def _clashes(value: str, used: set[str]) -> bool:
    """Whether a reader who took one of `used` for `value` could be called right."""
    plain = _plain(value)
    return any(plain in other or other in plain for other in used)


def _ask(rng, document: int, kind: str, firm: str, name: str, value: str) -> Question:
    text = rng.choice(words.SHEETS[kind].asked).format(f=firm, n=name)
    return Question(text, (value,), "question", {"documents": [document], "kind": kind})


class Sheets(generated.GeneratedBuilder):
    """Sheets of firms, and questions about their lines."""

    VERSION = tfds.core.Version(VERSION)
    generate = staticmethod(generate)


def source(split: str, data_dir, **options) -> generated.ExampleSource:
    """Returns the examples of `split`; `options` are SheetsConfig's."""
    return generated.open_generated(Sheets, SheetsConfig, split, data_dir, **options)
