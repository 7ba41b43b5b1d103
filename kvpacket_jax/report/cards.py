"""An adapter's card as a table."""

from collections.abc import Sequence

import rich.table

from kvpacket_jax.runtime.format import table as empty_table
from kvpacket_jax.train.card import ADAPTER, BARE, PRIMER, Row

# Of a row's scores, what is shown: heading, and the field of Score as text.
COLUMNS = (
    ("same where right", "same_right", "{:.2f}"),
    ("F1 share", "share", "{:.2f}"),
    ("KL", "kl", "{:.2f}"),
)
NAMES = {ADAPTER: "adapter", PRIMER: "its primer", BARE: "bare"}


def table(rows: Sequence[Row]) -> rich.table.Table:
    """One line a kind of documents; each score with the adapter, its primer alone and bare."""
    headings = [f"{heading}\n{name}" for heading, _, _ in COLUMNS for name in NAMES.values()]
    shown = empty_table(("documents", "at most"), "questions", "F1 full", *headings)
    for row in rows:
        scores = [
            form.format(getattr(row.scores[name], field))
            for _, field, form in COLUMNS
            for name in NAMES
        ]
        size = f"{row.documents}x{row.tokens}"
        shown.add_row(row.kind, size, str(row.questions), f"{row.full_f1:.2f}", *scores)
    return shown
