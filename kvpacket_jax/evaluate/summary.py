"""From answers to questions to what is said of a method: means, intervals, differences.

Questions about one set of documents are not independent, so the bootstrap draws sets: examples of
the same documents, in whatever order, are one.
"""

import collections
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.stats

from kvpacket_jax.doubt import RECOMPUTE_BELOW, is_in_doubt
from kvpacket_jax.evaluate import metrics
from kvpacket_jax.methods import METHODS

REFERENCE = "full_recompute"
BARE = "no_recompute"
RESAMPLES = 10_000
BATCH = 2_000_000  # sets drawn at once: thousands of sets would take gigabytes
# Limits of doubt.is_in_doubt, where full_recompute answers instead.
GUARDS = tuple(sorted({RECOMPUTE_BELOW, *(tenths / 10 for tenths in range(1, 10))}))
SHOWN_GUARDS = (RECOMPUTE_BELOW, 0.5)
COMPRESSED = "compress="  # in the setting of a method whose packets are not whole
# What only some rows have -> a heading and what it means.
EXTRA = {
    "f1_hotpot_qa": (
        "HotpotQA F1",
        "F1 as its authors count it, 0 where just one of an answer and the right one is yes or no",
    ),
    "string_recall": (
        "recall",
        "RULER's metric, the share of a list's items that were said, of an answer's first line; a "
        "list is exact where all its items are said, in whatever order",
    ),
    "gold_tokens": (
        "gold tokens",
        "the share that the method picked of the tokens of the documents that a question needs",
    ),
    "picked_tokens": ("all tokens", "the share that it picked of all documents' tokens"),
    "gold_documents": (
        "gold docs",
        "of the documents it picked most from, as many as are needed: the share that are needed",
    ),
}
# Differences of F1 on the same questions, to what is not full_recompute -> as in EXTRA.
PAIRED = {
    "f1_to_bare": ("to bare", "the 95 % interval of the paired difference to no_recompute's F1"),
    "f1_to_whole": (
        "to whole",
        "the same to that of the method with whole packets, where they are compressed",
    ),
}
FURTHER = PAIRED | EXTRA
# Where the words of an answer stand (rows.py) -> a heading.
PLACES = {
    "gold": "needed",
    "other": "other",
    "nowhere": "none",
    "closed": "yes or no",
    "unanswered": "empty",
    "": "unknown",
}
LOST = (
    "Lost are answers that full_recompute alone has right; of those, how many have their words in "
    "a document that the question needs, in another one, or in none (mostly whole sentences), how "
    "many are or should be yes or no, how many are empty, and of how many it is not known: lists, "
    "and questions that do not say which documents they need."
)


def aggregate(rows: Sequence[dict], seed: int = 0) -> list[dict]:
    """One summary for each label (method and setting), in the order in which they first appear.

    Args:
      rows: as in rows.jsonl: one for each question and label.

    Returns:
      Dicts with n, means, and 95 % intervals (`_low`, `_high`; None where there is one set only).
      `f1_difference` is paired, to full_recompute on the same questions, and so are those of
      PAIRED. "Where right" is where full_recompute's answer matches exactly, and "lost" where only
      that one does: how many answers have their words in a needed document, another one or nowhere.
      None where a figure does not exist; of EXTRA and PAIRED what no row has is left out. "guarded"
      has for each of GUARDS what comes of it when full_recompute answers where the method's answer
      is in doubt; it is left out where that is not known. Where questions are of several kinds,
      "kinds" has the same of each kind.
    """
    summaries = _aggregate(rows, seed)
    kinds = sorted({row.get("kind", "") for row in rows})
    if len(kinds) > 1:
        for kind in kinds:
            alone = _aggregate([row for row in rows if row.get("kind", "") == kind], seed)
            of = {(s["method"], s["setting"]): s for s in alone}
            for s in summaries:
                s.setdefault("kinds", {})[kind] = of.get((s["method"], s["setting"]))
    return summaries


def extra(summaries: Sequence[Mapping]) -> list[str]:
    """The figures of EXTRA that any of them has."""
    return _present(EXTRA, summaries)


def paired(summaries: Sequence[Mapping]) -> list[str]:
    """The differences of PAIRED that any of them has."""
    return _present(PAIRED, summaries)


def further(summaries: Sequence[Mapping]) -> list[str]:
    """Those of both, the columns after the usual ones."""
    return paired(summaries) + extra(summaries)


def _present(names: Iterable[str], summaries: Sequence[Mapping]) -> list[str]:
    return [name for name in names if any(s.get(name) is not None for s in summaries)]


def by_kind(summaries: Sequence[Mapping]) -> dict[str, list[tuple[Mapping, Mapping]]]:
    """For each kind of question each summary that knows it, with its scores there."""
    found = collections.defaultdict(list)
    for s in summaries:
        for kind, part in s.get("kinds", {}).items():
            if part:
                found[kind].append((s, part))
    return dict(found)


def lost(summaries: Sequence[Mapping]) -> list[tuple[str, Mapping, tuple[int, ...]]]:
    """What `LOST` says: a kind of question ("all" for one kind), a summary, and its numbers.

    Nothing where no answer is lost.
    """
    parts = by_kind(summaries) or {"all": [(s, s) for s in summaries]}
    found = [
        (kind or "other", s, part["lost"])
        for kind, pairs in parts.items()
        for s, part in pairs
        if s["method"] != REFERENCE and "lost" in part
    ]
    if not any(by_place for _, _, by_place in found):
        return []
    return [
        (kind, s, (sum(by_place.values()), *(by_place.get(place, 0) for place in PLACES)))
        for kind, s, by_place in found
    ]


def guarded(summaries: Sequence[Mapping]) -> list[Mapping]:
    """Those of methods that read packets, where it is known how sure the answers are."""
    return [s for s in summaries if s.get("guarded") and METHODS[s["method"]].reads_packets]


def _aggregate(rows: Sequence[dict], seed: int) -> list[dict]:
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["method"], row["setting"]].append(row)
    by_question = {label: {_key(r): r for r in group} for label, group in groups.items()}
    reference = by_question.get((REFERENCE, ""), {})
    summaries = [_summary(*label, group, reference, seed) for label, group in groups.items()]
    f1_of = {(s["method"], s["setting"]): s["f1"] for s in summaries}
    full, bare = f1_of.get((REFERENCE, "")), f1_of.get((BARE, ""))
    for s, group in zip(summaries, groups.values(), strict=True):
        s["f1_share"] = s["f1"] / full if full else None
        gap = None if full is None or bare is None else full - bare
        s["gap_closed"] = (s["f1"] - bare) / gap if gap else None
        method, setting = s["method"], s["setting"]
        if (method, setting) != (BARE, ""):
            s |= _difference("f1_to_bare", group, by_question.get((BARE, ""), {}), seed)
        if COMPRESSED in setting:
            s |= _difference("f1_to_whole", group, by_question.get((method, ""), {}), seed)
    return summaries


def _difference(name: str, rows: list[dict], others: Mapping[tuple, dict], seed: int) -> dict:
    """The paired difference of F1 to other rows, by question; {} where one has none."""
    if not all(_key(r) in others for r in rows):
        return {}
    differences = [r["f1"] - others[_key(r)]["f1"] for r in rows]
    low, high = _interval(rows, differences, seed)
    return {name: float(np.mean(differences)), f"{name}_low": low, f"{name}_high": high}


def _key(row: dict) -> tuple:
    return row["example"], row["question"]


def _summary(method: str, setting: str, rows: list[dict], reference: dict, seed: int) -> dict:
    f1 = [r["f1"] for r in rows]
    low, high = _interval(rows, f1, seed)
    scores = {
        "method": method,
        "setting": setting,
        "num_samples": len(rows),
        "num_sets": len({_documents(r) for r in rows}),
        "f1": float(np.mean(f1)),
        "f1_low": low,
        "f1_high": high,
        "f1_micro": metrics.f1_micro([r["answer"] for r in rows], [r["expected"] for r in rows]),
        "exact_match": _mean([r["exact_match"] for r in rows]),
        "kl": _mean([r["kl"] for r in rows]),
        "kl_answer": _mean([r["kl_answer"] for r in rows]),
        "agree": _mean([r["same"] for r in rows]),
    }
    for name in EXTRA:
        if found := [r[name] for r in rows if r.get(name) is not None]:
            scores[name] = _mean(found)
    scores["agree_low"], scores["agree_high"] = _interval(rows, [r["same"] for r in rows], seed)
    if all(_key(r) in reference for r in rows):
        pairs = [(r, reference[_key(r)]) for r in rows]
        full_f1 = [full["f1"] for _, full in pairs]
        scores["f1_share_low"], scores["f1_share_high"] = _interval(rows, f1, seed, full_f1)
        scores |= _difference("f1_difference", rows, reference, seed)
        for name, right in (("where_right", True), ("where_wrong", False)):
            chosen = [r for r, full in pairs if full["exact_match"] == right]
            scores[f"num_{name}"] = len(chosen)
            scores[f"agree_{name}"] = _mean([r["same"] for r in chosen])
            scores[f"kl_answer_{name}"] = _mean([r["kl_answer"] for r in chosen])
        if all(_has_doubt(r) for r in rows):
            scores["guarded"] = [_guarded(pairs, below) for below in GUARDS]
        lost = [r for r, full in pairs if full["exact_match"] and not r["exact_match"]]
        scores["lost"] = dict(collections.Counter(r.get("place", "") for r in lost))
    return scores


def unknown_doubts(rows: Sequence[dict]) -> int:
    """How many answers are from before all was kept that tells whether they are in doubt."""
    return sum(1 for r in rows if r["method"] != REFERENCE and not _has_doubt(r))


def _has_doubt(row: dict) -> bool:
    return row.get("confidence") is not None and "elsewhere" in row


def _guarded(pairs: Sequence[tuple[dict, dict]], below: float) -> dict:
    """Scores where full_recompute's answer replaces those that are in doubt."""
    reread = [is_in_doubt(r["confidence"], r["elsewhere"], below) for r, _ in pairs]
    f1 = _mean(
        [(full if again else r)["f1"] for again, (r, full) in zip(reread, pairs, strict=True)]
    )
    same = [again or r["same"] for again, (r, _) in zip(reread, pairs, strict=True)]
    right = [s for s, (_, full) in zip(same, pairs, strict=True) if full["exact_match"]]
    full = _mean([full["f1"] for _, full in pairs])
    return {
        "below": below,
        "reread": _mean(reread),
        "f1": f1,
        "f1_share": f1 / full if full else None,
        "agree": _mean(same),
        "agree_where_right": _mean(right),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _documents(row: dict) -> str:
    """Which documents a question is about; rows of before it was kept have their example's."""
    return row.get("documents", row["example"])


def _interval(
    rows: list[dict], values: Sequence[float], seed: int, of: Sequence[float] | None = None
) -> tuple[float | None, float | None]:
    """The 95 % bootstrap interval of the mean of `values`, one for each row, sets resampled.

    With `of`, of the sum of `values` over the sum of those: of the samples where that is above 0.
    """
    sums, counts = collections.Counter(), collections.Counter()
    for row, value, share in zip(rows, values, of or [1] * len(rows), strict=True):
        sums[_documents(row)] += float(value)
        counts[_documents(row)] += float(share)
    if len(counts) < 2 or not any(counts.values()):
        return None, None
    data = [np.array([c[k] for k in counts], float) for c in (sums, counts)]
    with warnings.catch_warnings():
        # Where a sample of sets has nothing that the share could be of.
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        result = scipy.stats.bootstrap(
            data,
            lambda s, n, axis=-1: s.sum(axis) / np.where((total := n.sum(axis)) > 0, total, np.nan),
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=RESAMPLES,
            batch=max(1, BATCH // len(counts)),
            rng=np.random.default_rng(seed),
        )
    low, high = np.nanpercentile(result.bootstrap_distribution, (2.5, 97.5))
    return float(low), float(high)
