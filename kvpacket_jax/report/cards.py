"""An adapter's card as a table and as a figure."""

from collections.abc import Sequence

import rich.table

from kvpacket_jax.adapters.card import ADAPTER, BARE, PLAIN, PRIMER, Card, Row, Score
from kvpacket_jax.report import figures
from kvpacket_jax.runtime.format import number
from kvpacket_jax.runtime.format import table as empty_table

NAMES = {ADAPTER: "adapter", PRIMER: "its primer", BARE: "bare"}
REREAD = "adapter, re-reading in doubt"
LOOKS = {
    NAMES[BARE]: (figures.STYLES["no_recompute"][0], "X", "full"),
    NAMES[PRIMER]: (figures.STYLES["cache_blend"][0], "^", "full"),
    NAMES[ADAPTER]: (figures.STYLES["kv_packet"][0], "o", "full"),
    REREAD: (figures.STYLES["kv_packet"][0], "o", "none"),
}


def legend(card: Card) -> str:
    """What the table's columns are."""
    text = (
        "size: documents, and the tokens of one, at most. n: questions (in brackets those that "
        "the full context gets right). share: of the full context's F1. same: the share of "
        "answers that are the full context's; right: of those that it gets right."
    )
    if card.best_first:
        text += (
            " Read with the document most like the question first; bare packets have none of their "
            "own for that, and launch.answer keeps the order given for them."
        )
    if left_out := sum(row.left_out or 0 for row in card.rows):
        text += f" Left out: {left_out} questions whose answers had no room."
    if card.recompute_below is None:
        return text
    return (
        f"{text} reread: the share of questions in doubt, whose answers have a token of a "
        f"probability below {card.recompute_below:g}{_elsewhere(card)}; then: as right, with those "
        "answered from the documents read in full."
    )


def table(rows: Sequence[Row]) -> rich.table.Table:
    """A line for each way to build packets, three or without a primer two, a kind of documents."""
    shown = empty_table(
        ("documents", "packets"),
        *("size", "n", "F1 full", "share", "same", "right", "KL", "reread", "then"),
    )
    for row in _in_order(rows):
        size = f"{row.documents} of {row.tokens}"
        first = row.plain_kind, (size, _counts(row), f"{row.full_f1:.2f}")
        for way, score in _ways(row).items():
            kind, counts = first if way == ADAPTER else ("", ("", "", ""))
            numbers = (score.share, score.same, score.same_right, score.kl)
            numbers += (score.reread, score.guarded_right)
            shown.add_row(kind, NAMES[way], *counts, *map(number, numbers))
    return shown


def figure(card: Card) -> str:
    """Right answers that packets keep, by kind of documents, a marker a way to build them: SVG."""
    kept: dict[str, dict[str, float]] = {}
    for row in _in_order(card.rows):
        shares = {NAMES[way]: score.same_right for way, score in _ways(row).items()}
        shares[REREAD] = row.scores[ADAPTER].guarded_right
        known = {way: x for way, x in shares.items() if x is not None}
        count = row.questions if row.right is None else row.right
        kept[f"{row.plain_kind} ({count})"] = known
    whose = "" if any(row.right is None for row in card.rows) else " that it gets right"
    note = f"{card.model}; in brackets the number of questions{whose}."
    if card.recompute_below is not None:
        note += (
            f" In doubt: a token of the answer has a probability below {card.recompute_below:g}"
            f"{_elsewhere(card)}."
        )
    return figures.by_kind(kept, LOOKS, "of the full context's right answers, the share kept", note)


def _elsewhere(card: Card) -> str:
    """What else is in doubt, since it was noticed."""
    return ", or it stands in another document than the one asked for" if card.elsewhere else ""


def _counts(row: Row) -> str:
    return str(row.questions) if row.right is None else f"{row.questions} ({row.right})"


def _ways(row: Row) -> dict[str, Score]:
    """Scores by way; an adapter without a primer has the bare packets' there, which is left out."""
    return {
        way: row.scores[way]
        for way in NAMES
        if way != PRIMER or row.scores[PRIMER] != row.scores[BARE]
    }


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """As PLAIN has their kinds, then others."""
    place = {kind: i for i, kind in enumerate(PLAIN)}
    return sorted(rows, key=lambda row: place.get(row.kind, len(place)))
