"""How much of what a question needs is in what a method picked for it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Picked(NamedTuple):
    """Of one question; a document that it needs is called gold."""

    gold_tokens: float  # the share of the gold documents' tokens that was picked
    picked_tokens: float  # of all documents' tokens: what a choice without regard to them gives
    # The share of the gold documents that are among as many documents of which most was picked; one
    # of which nothing was is not among them.
    gold_documents: float


def picked(
    info: Mapping[str, Any], preamble: int, lengths: Sequence[int], gold: Sequence[int] | None
) -> Picked | None:
    """What a method picked, by `Prepared.info`; None where it picks nothing or nothing is gold.

    Args:
      info: "selected", the slots that were picked, or "top", which is 0 or more at those; "order",
        where the documents stand in another one.
      preamble, lengths: tokens of the preamble and of each document.
      gold: indices of the documents that the question needs.
    """
    gold = sorted(set(gold or ()))
    if not gold or not info.keys() & {"selected", "top"}:
        return None
    slots = np.flatnonzero(np.asarray(info["top"]) >= 0) if "top" in info else info["selected"]
    order = np.asarray(info.get("order", np.arange(len(lengths))))
    order = order[order < len(lengths)]  # the rest is padding
    lengths = np.asarray(lengths)
    ends = preamble + np.cumsum(lengths[order])
    slots = np.asarray(slots)
    slots = slots[(slots >= preamble) & (slots < ends[-1])]  # padding and the query lie beyond
    counts = np.zeros(len(lengths), int)
    np.add.at(counts, order[np.searchsorted(ends, slots, side="right")], 1)
    best = np.argsort(-counts / np.maximum(lengths, 1), kind="stable")[: len(gold)]
    best = best[counts[best] > 0]
    return Picked(
        float(counts[gold].sum() / lengths[gold].sum()),
        float(counts.sum() / lengths.sum()),
        len(set(best.tolist()) & set(gold)) / len(gold),
    )
