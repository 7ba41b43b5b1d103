"""Passages of a text that can be asked for: sentences to be completed, answers that stand in it."""

import random
import re
from collections.abc import Callable

from kvpacket_jax.data.examples import Question

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
CUT_AT = re.compile(r"(?<=[.!?:;])\s+|\n+")  # where a text that is too long may end
SENTENCE_WORDS = (9, 40)  # of those that are cut


def cuts(rng: random.Random, document: int, text: str) -> list[Question]:
    """Each sentence of SENTENCE_WORDS, cut in its middle, to be continued."""
    questions = []
    for sentence in SENTENCE_END.split(text):
        words = sentence.split()
        if SENTENCE_WORDS[0] <= len(words) <= SENTENCE_WORDS[1]:
            at = rng.randint(max(5, len(words) // 3), max(5, 2 * len(words) // 3))
            info = {"kind": "cut", "documents": [document]}
            start, rest = " ".join(words[:at]), " ".join(words[at:])
            questions.append(Question(start, (rest,), "completion", info))
    return questions


def beginning(text: str, fits: Callable[[str], bool]) -> str:
    """The text, or as many of its first whole sentences as fit; "" if the first does not."""
    if fits(text):
        return text
    ends = [m.start() for m in CUT_AT.finditer(text)]
    low, high = 0, len(ends)  # how many ends fit, by bisection
    while low < high:
        middle = (low + high + 1) // 2
        if fits(text[: ends[middle - 1]]):
            low = middle
        else:
            high = middle - 1
    return text[: ends[low - 1]].rstrip() if low else ""


def stands_in(answer: str, text: str) -> bool:
    """Whether a text has the answer word for word, in whichever case and over whichever lines."""
    return count(answer, text) > 0


def count(answer: str, text: str) -> int:
    """How often it has."""
    words = r"\s+".join(map(re.escape, answer.split()))
    return len(re.findall(rf"(?<!\w){words}(?!\w)", text, re.I))
