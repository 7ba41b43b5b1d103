"""Which documents of a corpus are most similar to one of them: BM25 over token ids, or words."""

import re
from collections.abc import Sequence

import numpy as np

K1, B = 1.2, 0.75  # how fast a repeated token stops counting, and how much length counts
# A document asks with its rarest tokens, until so many of their holders were looked at: the common
# ones tell little and cost most.
HOLDERS = 50_000
SCALE = 1024  # weights are whole numbers: their sums do not depend on any order


def words(text: str) -> list[str]:
    """A text's words, as texts are compared by them."""
    return re.findall(r"\w+", text.lower())


def of_texts(texts: Sequence[str]) -> "Index":
    """An index of texts by their words, whatever the tokenizer."""
    numbers: dict[str, int] = {}
    return Index([[numbers.setdefault(w, len(numbers)) for w in words(text)] for text in texts])


def closest_to(texts: Sequence[str], question: str) -> int:
    """The text most similar to a question by its words, the first of equals."""
    return of_texts([*texts, question]).closest(len(texts), 1)[0]


class Index:
    """The documents by the tokens they hold, in flat arrays: 12 bytes for each."""

    def __init__(self, documents: Sequence[Sequence[int]]):
        """
        Args:
          documents: token ids of each; compact arrays, for a large corpus.
        """
        self._number = len(documents)
        self._terms = [np.unique(np.asarray(d, np.int32), return_counts=True) for d in documents]
        lengths = np.array([len(d) for d in documents])
        tokens, counts = (np.concatenate([t[i] for t in self._terms]) for i in range(2))
        self._terms = [terms for terms, _ in self._terms]
        holders = np.repeat(np.arange(self._number, dtype=np.int32), [*map(len, self._terms)])
        self._holding = np.bincount(tokens)  # documents with a token
        self._ends = np.cumsum(self._holding)
        rarity = np.log1p((self._number - self._holding + 0.5) / (self._holding + 0.5))
        damping = K1 * (1 - B + B * lengths / lengths.mean())
        weights = rarity[tokens] * counts * (K1 + 1) / (counts + damping[holders])
        by_token = np.argsort(tokens, kind="stable")
        self._holders = holders[by_token]
        self._weights = np.rint(SCALE * weights[by_token]).astype(np.int32)

    def closest(self, i: int, number: int) -> list[int]:
        """The documents most similar to the i-th, without it: the first is the most similar.

        Of equally similar ones the earlier comes first; `number` must be less than there are.
        """
        terms = self._terms[i]
        if not len(terms):  # signs alone: nothing is like it
            return [other for other in range(self._number) if other != i][:number]
        terms = terms[np.argsort(self._holding[terms], kind="stable")]
        affordable = np.cumsum(self._holding[terms]) <= HOLDERS
        rarest = terms[: max(1, affordable.sum())]
        spans = [np.s_[self._ends[t] - self._holding[t] : self._ends[t]] for t in rarest]
        holders, weights = (
            np.concatenate([x[span] for span in spans]) for x in (self._holders, self._weights)
        )
        scores = np.bincount(holders, weights, self._number)
        scores[i] = -1
        least = np.partition(scores, -number)[-number]
        among = np.flatnonzero(scores >= least)
        return among[np.argsort(-scores[among], kind="stable")][:number].tolist()
