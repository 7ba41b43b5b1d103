"""Sheets such as firms hand out: price lists, timetables, who is who, opening hours, data, minutes.

A document is one sheet of one firm, mostly lines of a name and a value in one of many layouts; the
questions ask for a value. Where texts teach a model's packets to be read, lists and numbers do not
look like them.
"""

import dataclasses
import functools

import tensorflow_datasets as tfds

from kvpacket_jax.data import biography_words as people
from kvpacket_jax.data import generated
from kvpacket_jax.data import sheets_words as words
from kvpacket_jax.data.examples import Example, Question

VERSION = "1.0.0"  # part of every seed: raise it with any change of what is drawn
KINDS = tuple(words.SHEETS)
LINES = (3, 12)  # the shortest sheet's and the longest one's; a line is about 6 tokens of a value
WORDS_PER_LINE = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SheetsConfig(generated.GeneratorConfig):
    """Ranges are a number or (least, most).

    `same_kind` is how often all sheets of an example are of one kind: those are confused.
    """

    num_documents: int | tuple[int, int] = 5
    document_words: int | tuple[int, int] = (30, 60)
    kinds: tuple[str, ...] = KINDS
    same_kind: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        for name, high in {"num_documents": 10, "document_words": 160}.items():
            pair = generated.as_range(name, getattr(self, name), 1, high)
            object.__setattr__(self, name, pair)
        object.__setattr__(self, "kinds", generated.as_choices("kinds", self.kinds, KINDS))
        if not 0 <= self.same_kind <= 1:
            raise ValueError(f"same_kind={self.same_kind!r} must be from 0 to 1")


@functools.cache
def _pool(split: str, name: str) -> tuple[str, ...]:
    return generated.pool_of(words.POOLS[name], split)


def firms(split: str) -> tuple[str, ...]:
    """Returns the names that the firms of `split` have, and of no other split."""
    return generated.pool_of(people.SURNAMES, split)


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
    """A sheet's text, and the (name, value) of its lines; values in `used` are not taken."""
    sheet = words.SHEETS[kind]
    least, most = LINES
    pool = _pool(split, sheet.names)
    number = min(max(num_words // WORDS_PER_LINE, least), most, len(pool))
    names, facts = rng.sample(pool, number), []
    for name in names:
        while (value := sheet.value(rng, name, surnames)) in used:
            pass
        used.add(value)
        facts.append((name, value))
    if sheet.sorted:
        facts = [
            (name, value) for name, value in zip(names, sorted(v for _, v in facts), strict=True)
        ]
    layout = rng.choice(words.LAYOUTS)
    lines = [layout.format(n=name[0].upper() + name[1:], v=value) for name, value in facts]
    notes = rng.sample(sheet.notes, rng.randint(0, min(2, len(sheet.notes))))
    heading = rng.choice(sheet.headings).format(f=firm)
    if rng.random() < 0.4:
        heading = heading.upper()
    parts = [heading, *notes[:1], "\n".join(lines), *notes[1:]]
    return rng.choice(("\n", "\n\n")).join(parts), facts


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
