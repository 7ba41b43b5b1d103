"""Which document is read first."""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence

from kvpacket_jax import similarity
from kvpacket_jax.data.examples import Example, with_documents

TURNS = 5  # as many documents as most sets have


def best_first(example: Example) -> list[Example]:
    """The example in parts, of the questions that are most like the same document: it comes first.

    The other documents keep their order, and parts the order of their first questions. Requests are
    read so (serve/found.py): a document that comes first loses nothing as a packet.
    """
    parts: dict[int, list[int]] = {}
    for i, question in enumerate(example.questions):
        parts.setdefault(similarity.closest_to(example.documents, question.text), []).append(i)
    others = range(len(example.documents))
    return [
        with_documents(
            example,
            [first, *(i for i in others if i != first)],
            [example.questions[i] for i in asked],
            f"{example.id}, {first} first",
        )
        for first, asked in parts.items()
    ]


def in_turn(source: Sequence[Example]) -> Iterator[Example]:
    """The parts that `best_first` makes of all examples: one of each, then another of each …"""
    others = []
    for example in source:
        drawn, *rest = _shuffled(example)
        others.append(rest)
        yield drawn
    for parts in itertools.zip_longest(*others):
        yield from filter(None, parts)


@dataclasses.dataclass(frozen=True)
class PartlyBestFirst(Sequence):
    """A source TURNS times over, in each turn a share of its examples cut to a part of them.

    The parts are those that `best_first` makes, in each turn another.
    """

    source: Sequence[Example]
    share: float

    def __len__(self) -> int:
        return TURNS * len(self.source)

    def __getitem__(self, i: int) -> Example:
        turn, i = divmod(i, len(self.source))
        example, place = self.source[i], i + turn
        if int((place + 1) * self.share) == int(place * self.share):  # evenly
            return example
        parts = _shuffled(example)
        return parts[turn % len(parts)]


def _shuffled(example: Example) -> list[Example]:
    """The parts as chance has it: a document with few questions comes first as often as others."""
    parts = best_first(example) or [example]
    random.Random(example.id).shuffle(parts)
    return parts
