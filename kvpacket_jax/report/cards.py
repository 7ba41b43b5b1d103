"""An adapter's card as a table."""

from collections.abc import Sequence

import rich.table

from kvpacket_jax.adapters.card import ADAPTER, BARE, PRIMER, Row
from kvpacket_jax.answer_text import RECOMPUTE_BELOW
from kvpacket_jax.runtime.format import table as empty_table

NAMES = {ADAPTER: "adapter", PRIMER: "its primer alone", BARE: "bare"}


LEGEND = (
    "same: the share of answers that are the full context's; where right: of those that it gets "
    "right. reread: the share of questions in doubt, whose answers have a token of a probability "
    f"below {RECOMPUTE_BELOW:g}; then right: as where right, with those answered from the "
    "documents read in full."
)


def table(rows: Sequence[Row]) -> rich.table.Table:
    """Three lines a kind of documents: with the adapter, its primer alone, and bare packets."""
    shown = empty_table(
        ("documents", "packets"),
        *("questions", "F1 full", "F1 share", "same", "where right", "KL", "reread", "then right"),
    )
    for row in rows:
        size = f"{row.kind}, at most {row.documents} of {row.tokens} tokens"
        first = (size, str(row.questions), f"{row.full_f1:.2f}")
        for name, shown_name in NAMES.items():
            score = row.scores[name]
            numbers = (score.share, score.same, score.same_right, score.kl)
            kind, *counts = first if name == ADAPTER else ("", "", "")
            numbers += (score.reread, score.guarded_right)
            cells = ("-" if x is None else f"{x:.2f}" for x in numbers)
            shown.add_row(kind, shown_name, *counts, *cells)
    return shown
