"""An adapter's card on disk: how near its packets come to the full context, by kind of document.

launch.card measures one (train/card.py); launch.answer reads it.
"""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.runtime import sealed
from models.disk.files import AnyPath, write_whole

FILE = "card.json"
PLAIN = {  # kinds of configs/card.py, for readers
    "five lives": "five biographies",
    "five short lives": "five short biographies",
    "ten lives": "ten biographies",
    "twenty lives": "twenty biographies",
    "needles": "needles",
    "wikipedia": "Wikipedia",
    "wikipedia, long": "longer Wikipedia",
    "everyday": "a folder's documents",
    "own_docs": "everyday documents",
    "own_notes": "notes of a line",
}
ADAPTER, PRIMER, BARE = "adapter", "primer", "bare"  # what packets are built with


class Score(NamedTuple):
    """Of the questions of one kind, with one way to build packets."""

    f1: float
    share: float  # of the full context's F1
    same: float  # share of answers that are the full context's, token by token
    # Of those where that has a gold answer, or none is known; None where it never has one.
    same_right: float | None
    kl: float  # of an answer, in nats
    # What it does to read again in doubt; None on cards from before that was measured.
    reread: float | None = None  # share of questions whose documents are then read in full
    guarded_right: float | None = None  # `same_right` when those are answered so


class Row(NamedTuple):
    """One kind of documents."""

    kind: str
    documents: int  # in an example, at most
    tokens: int  # of a document, at most
    questions: int
    full_f1: float
    scores: dict[str, Score]  # ADAPTER, PRIMER, BARE
    # Earlier cards know neither.
    right: int | None = None  # questions that `same_right` is of
    left_out: int | None = None  # questions whose answers had no room: too long for the config

    @property
    def plain_kind(self) -> str:
        return PLAIN.get(self.kind, self.kind)


class Card(NamedTuple):
    """What was measured of an adapter."""

    model: str  # its name
    rows: list[Row]
    config: str  # a digest of what it was measured by
    template: str = "chat"  # the name of the one that was measured with
    recompute_below: float | None = None  # the limit that `Score.reread` is of, if it is known
    model_fingerprint: str = ""  # for a model has several names; earlier cards lack it
    # Whether the document most like a question came first, with a packet of its own for that.
    best_first: bool = False
    elsewhere: bool = False  # whether answers that doubt.is_elsewhere notices are in doubt


def write(path: AnyPath, card: Card, adapter: Adapter, dtype: str) -> None:
    """Writes the card of an adapter, which it names, as measured in `dtype`."""
    described = [
        row._asdict() | {"scores": {name: s._asdict() for name, s in row.scores.items()}}
        for row in card.rows
    ]
    fields = card._asdict() | {"rows": described, "dtype": dtype}
    fields["adapter"] = adapter_lib.fingerprint(adapter)
    write_whole(path, json.dumps(sealed.stamped(fields), indent=1) + "\n")


def read(path: AnyPath, adapter: Adapter) -> Card | None:
    """An adapter's card; None where there is none, or it is another adapter's.

    Raises sealed.Damaged, a ValueError, which names the file.
    """
    remedy = "Remove it; launch.card measures it again."
    if not path.exists():
        return None
    card = sealed.read_json(path, remedy)
    try:
        if card["adapter"] != adapter_lib.fingerprint(adapter):
            return None
        rows = [
            Row(**row | {"scores": {name: Score(**s) for name, s in row["scores"].items()}})
            for row in card["rows"]
        ]
        template = card.get("template", "chat")  # which earlier cards were measured with
        return Card(
            card["model"],
            rows,
            card["config"],
            template,
            card.get("recompute_below"),
            card.get("model_fingerprint", ""),
            card.get("best_first", False),
            card.get("elsewhere", False),
        )
    except sealed.WRONG_JSON as error:
        raise sealed.Damaged(f"{path} is no adapter's card: {error!r}. {remedy}") from error


def remark(
    card: Card | None,
    name: str,
    model: str,
    template: str,
    documents: int,
    tokens: int,
    least: float,
    recompute_below: float = 0.0,
    best_first: bool = False,
) -> str:
    """What a reader of answers should know of a request, in one line; "" if that is nothing.

    A request is judged by the rows with as many documents and as long ones: of those with the
    fewest documents, the worst. The best is named too, for the reader knows what kind these are.

    Args:
      name: the adapter's.
      model: the name of the model that answers.
      template: the name of the one that documents and questions are put into.
      documents: how many the request has.
      tokens: of its longest document.
      least: the share of answers that should be the full context's, where that is right.
      recompute_below: the confidence below which documents are read in full; what reading in doubt
        does is said where it is what the card was measured with.
      best_first: whether documents are read as `Card.best_first` has it.
    """
    unknown = "how often its answers are the full context's is not known"
    if card is None:
        return f"{name} has no card, or one of another adapter: {unknown}. launch.card measures it."
    if card.model != model:
        return f"The card of {name} is of {card.model}, not {model}: {unknown}."
    if card.template != template:
        return (
            f"The card of {name} is of the template {card.template}, not {template}: {unknown}. "
            f"launch.card --config.template={template} --output=FILE measures it."
        )
    if card.best_first and not best_first:
        return (
            f"The card of {name} is of answers with the document most like the question read "
            f"first, from a second packet that it has for that. It is not so here: {unknown}. "
            "Build without --noopenings, and answer without --nobest_first."
        )
    known = [row for row in card.rows if row.scores[ADAPTER].same_right is not None]
    if not known:
        return f"The full context was never right on what the card of {name} covers: {unknown}."
    fitting = [row for row in known if row.documents >= documents and row.tokens >= tokens]
    if not fitting:
        every = {(row.documents, row.tokens) for row in known}
        sizes = sorted(s for s in every if not any(_covers(o, s) for o in every - {s}))
        return (
            f"The card of {name} does not cover {documents} documents of up to {tokens} tokens, "
            f"only up to {' or '.join(f'{n} of {t}' for n, t in sizes)}: {unknown}."
        )
    fewest = min(row.documents for row in fitting)
    rows = _worst_first(row for row in fitting if row.documents == fewest)
    if rows[0].scores[ADAPTER].same_right >= least:
        return ""
    as_measured = card.elsewhere and recompute_below == card.recompute_below
    guarded = _guarded(rows) if as_measured else ""
    return (
        f"By the card of {name}, packets give word for word {_right(rows)} of the right answers "
        f"that reading in full gives{guarded}.{_worse(rows)}{_other(known, rows)} "
        "--min_agreement=0 leaves this out."
    )


def _covers(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether documents are as many and as long."""
    return one[0] >= other[0] and one[1] >= other[1]


def _worst_first(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.scores[ADAPTER].same_right)


def _right(rows: Sequence[Row]) -> str:
    """The shares of the first and the last row, and their kinds."""
    return _between([f"{r.scores[ADAPTER].same_right:.0%} ({r.plain_kind})" for r in rows])


def _worse(rows: Sequence[Row]) -> str:
    """On which kinds the adapter's packets are worse than none."""
    worse = [
        row.plain_kind
        for row in rows
        if BARE in row.scores and row.scores[ADAPTER].same_right < row.scores[BARE].same_right
    ]
    if not worse:
        return ""
    kinds = ", ".join(worse)
    return f" Bare packets (built and asked with --adapter=none) did better on {kinds}."


def _other(every: Sequence[Row], rows: Sequence[Row]) -> str:
    """What the other rows have, where a request is judged by a single one."""
    other = _worst_first(row for row in every if row not in rows)
    return "" if len(rows) > 1 or not other else f" Other kinds and sizes: {_right(other)}."


def _guarded(rows: Sequence[Row]) -> str:
    """What reading again does, of all rows; "" where a card does not know."""
    scores = [row.scores[ADAPTER] for row in rows]
    if any(score.guarded_right is None for score in scores):
        return ""
    right, reread = (
        [f"{share:.0%}" for share in sorted(shares)]
        for shares in zip(*((s.guarded_right, s.reread) for s in scores), strict=True)
    )
    return (
        f", or {_between(right)} if documents are read again when in doubt ({_between(reread)} of "
        "questions)"
    )


def _between(shares: Sequence[str]) -> str:
    """The first and the last."""
    return " to ".join(dict.fromkeys((shares[0], shares[-1])))
