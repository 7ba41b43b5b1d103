"""Scores of answers: SQuAD's exact match and token F1 (Rajpurkar et al. 2016), two averages.

MuSiQue's authors score so too; HotpotQA's and RULER's have a figure of their own beside it.
"""

import collections
import re
import string
from collections.abc import Sequence

VERSION = 2  # raise it where an answer may score otherwise: rows of two versions do not mix


def normalize(text: str) -> list[str]:
    """SQuAD's tokens: lower case, without punctuation and the articles a, an, the."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def overlap(answer: str, gold: str) -> tuple[int, int, int]:
    """Tokens in common, of the answer, of the gold answer."""
    words, gold_words = normalize(answer), normalize(gold)
    common = collections.Counter(words) & collections.Counter(gold_words)
    return common.total(), len(words), len(gold_words)


def f1(answer: str, golds: Sequence[str]) -> float:
    """Token F1 against the closest gold answer; 1 where both are empty."""
    return max(_f1(*overlap(answer, gold)) for gold in golds)


def _f1(common: int, in_answer: int, in_gold: int) -> float:
    if not in_answer or not in_gold:
        return float(in_answer == in_gold)
    return 2 * common / (in_answer + in_gold)


def exact_match(answer: str, golds: Sequence[str]) -> bool:
    """Whether the normalised answer equals a gold one."""
    return any(normalize(answer) == normalize(gold) for gold in golds)


def contains(answer: str, golds: Sequence[str]) -> bool:
    """Whether the normalised answer has a gold one in it, word for word."""
    words = f" {' '.join(normalize(answer))} "
    return any(f" {' '.join(normalize(gold))} " in words for gold in golds)


def begins(answer: str, golds: Sequence[str]) -> bool:
    """Whether a gold one begins with the normalised answer, whose last word may be cut short."""
    said = " ".join(normalize(answer))
    return bool(said) and any(" ".join(normalize(gold)).startswith(said) for gold in golds)


def f1_micro(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """F1 from counts summed over all questions, of SQuAD's tokens.

    The authors' figures are micro-averaged too, over words with their punctuation and articles.
    """
    sums = (0, 0, 0)
    for answer, options in zip(answers, golds, strict=True):
        counts = max((overlap(answer, gold) for gold in options), key=lambda c: _f1(*c))
        sums = tuple(a + b for a, b in zip(sums, counts, strict=True))
    return _f1(*sums)


CLOSED = ("yes", "no", "noanswer")


def f1_hotpot_qa(answer: str, golds: Sequence[str]) -> float:
    """Token F1 by HotpotQA's rule: "yes" and "no", as answer or gold, are right alone or not."""
    pairs = [(answer, gold) for gold in golds if not _one_is_closed(answer, gold)]
    return max((_f1(*overlap(*pair)) for pair in pairs), default=0.0)


def is_closed(answer: str) -> bool:
    """Whether an answer is yes or no, or says that there is none."""
    return " ".join(normalize(answer)) in CLOSED


def _one_is_closed(answer: str, gold: str) -> bool:
    return normalize(answer) != normalize(gold) and (is_closed(answer) or is_closed(gold))


LIST = ", "  # between the items of a gold list
STRING_RECALL = "string_recall"


def string_recall(answer: str, golds: Sequence[str]) -> float:
    """RULER's metric: the share of the items of a list that stand in the answer.

    Args:
      golds: the list, its items joined by ", ".
    """
    (gold,) = golds
    items = gold.lower().split(LIST)
    return sum(item in answer.lower() for item in items) / len(items)


# Data sets whose authors score otherwise -> the name of the figure, and its function.
PUBLISHED = {
    "hotpot_qa": ("f1_hotpot_qa", f1_hotpot_qa),
    "niah": (STRING_RECALL, string_recall),
    "ruler": (STRING_RECALL, string_recall),
}
