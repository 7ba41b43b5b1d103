"""The tables of a report's page: cells of text."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kvpacket_jax.evaluate import summary
from kvpacket_jax.evaluate.rows import spec_of
from kvpacket_jax.evaluate.summary import REFERENCE
from kvpacket_jax.methods import METHODS
from kvpacket_jax.runtime.format import milliseconds, si

EXAMPLES = 12  # questions that are shown with their answers
ASIDE = 2  # methods that are shown beside the first that reads packets
LONGEST = 60  # characters of a cell


class Table(NamedTuple):
    header: tuple[str, ...]
    lines: list[tuple[str, ...]]
    caption: str = ""
    texts: int = 2  # columns of text, before those of numbers


def scores(rows: Sequence[dict]) -> Table:
    """One line a method and setting."""
    further = summary.further(rows)
    header = (
        *(
            "method",
            "setting",
            "n",
            "F1 (95 %)",
            "exact",
            "÷ full (95 %)",
            "difference (95 %)",
            "micro-F1",
        ),
        *("same", "where right", "KL all", "TTFT ms", "FLOPs", "overhead", "cache bytes"),
        *map(_heading, further),
    )
    cells = [
        (
            r["method"],
            r["setting"],
            str(r["num_samples"]),
            _score(r, "f1"),
            _score(r, "exact_match"),
            _score(r, "f1_share"),
            "-" if r["method"] == REFERENCE else _score(r, "f1_difference"),
            _score(r, "f1_micro"),
            _score(r, "agree"),
            _score(r, "agree_where_right"),
            _score(r, "kl_answer"),
            milliseconds(r.get("ttft_s")),
            *(si(r.get(key)) for key in ("flops_total", "flops_overhead", "cache_bytes")),
            *(_score(r, name) for name in further),
        )
        for r in rows
    ]
    return Table(header, cells)


def _heading(name: str) -> str:
    """Of a figure of `summary.FURTHER`."""
    return f"{summary.FURTHER[name][0]}{' (95 %)' if name in summary.PAIRED else ''}"


def kinds(rows: Sequence[dict]) -> Table | None:
    """For each kind of question a line a method: the first ones of packets, beside the reference.

    None for one kind.
    """
    packets = [r for r in rows if METHODS[r["method"]].reads_packets][: 1 + ASIDE]
    rows = [*(r for r in rows if r["method"] == REFERENCE), *packets]
    parts_of = summary.by_kind(rows)
    further = summary.further([part for parts in parts_of.values() for _, part in parts])
    lines = [
        (
            kind or "other",
            spec_of(r),
            str(part["num_samples"]),
            *(_score(part, key) for key in ("f1", "exact_match", "f1_share")),
            "-" if part["method"] == REFERENCE else _score(part, "f1_difference"),
            *(_score(part, key) for key in ("agree", "agree_where_right", "kl_answer")),
            *(_score(part, name) for name in further),
        )
        for kind, parts in parts_of.items()
        for r, part in parts
    ]
    if not lines:
        return None
    header = ("kind", "method", "n", "F1 (95 %)", "exact", "÷ full (95 %)", "difference (95 %)")
    caption = f"By kind of question, the first {1 + ASIDE} methods of packets."
    header = (*header, "same", "where right", "KL all", *map(_heading, further))
    return Table(header, lines, caption)


def places(rows: Sequence[dict]) -> Table | None:
    """Where the words of lost answers stand, by kind of question; None where none is lost."""
    lines = [(kind, spec_of(r), *map(str, n)) for kind, r, n in summary.lost(rows)]
    if not lines:
        return None
    return Table(("kind", "method", "lost", *summary.PLACES.values()), lines, summary.LOST)


def guarded(rows: Sequence[dict]) -> Table | None:
    """What comes of reading again what is in doubt; None where it is not known."""
    lines = [
        (
            spec_of(r),
            f"{g['below']:g}",
            f"{g['reread']:.0%}",
            *(_score(g, key) for key in ("f1", "f1_share", "agree", "agree_where_right")),
        )
        for r in summary.guarded(rows)
        for g in r["guarded"]
        if g["below"] in summary.SHOWN_GUARDS
    ]
    if not lines:
        return None
    header = ("method", "limit", "read again", "F1", "÷ full", "same", "where right")
    caption = (
        "With full_recompute's answer in place of those whose least likely token is less probable "
        "than the limit, or that stand in another document than the one most like the question."
    )
    return Table(header, lines, caption, texts=1)


def lost(rows: Sequence[dict], answers: Sequence[dict]) -> Table | None:
    """Questions that full_recompute answers right and the first method of packets does not.

    None where there are none; no more than EXAMPLES of them, spread over all.

    Args:
      rows: summaries; answers: to single questions, of the same methods.
    """
    specs = [spec_of(r) for r in rows if METHODS[r["method"]].reads_packets]
    said: dict[tuple, dict[str, dict]] = {}
    for r in answers:
        said.setdefault((r["example"], r["question"]), {})[spec_of(r)] = r
    specs = [s for s in specs if any(s in by for by in said.values())][: 1 + ASIDE]
    if not specs:
        return None
    shown = (REFERENCE, *specs)
    whole = [by for by in said.values() if by.keys() >= set(shown)]
    found = [by for by in whole if by[REFERENCE]["exact_match"] and not by[specs[0]]["exact_match"]]
    if not found:
        return None
    number = min(EXAMPLES, len(found))
    chosen = [found[i * len(found) // number] for i in range(number)]
    lines = [
        tuple(map(_cut, (by[REFERENCE]["asked"], *(by[spec]["answer"] for spec in shown))))
        for by in chosen
    ]
    right = sum(by[REFERENCE]["exact_match"] for by in whole)
    caption = (
        f"{REFERENCE} has {right} of {len(whole)} questions right; {specs[0]} loses {len(found)} "
        f"of them. Shown with what is said instead: {number}."
    )
    return Table(("question", *shown), lines, caption, texts=1 + len(shown))


def published(rows: Sequence[dict]) -> Table:
    """The authors' rows."""
    header = ("method", "setting", "micro-F1", "TTFT ms", "FLOPs, as they count")
    cells = [
        (
            r["method"],
            r["setting"],
            f"{r['f1']:.3f}",
            milliseconds(r["ttft_s"]),
            si(r["flops"]),
        )
        for r in rows
    ]
    return Table(header, cells)


def _score(r: Mapping, key: str) -> str:
    value, low, high = (r.get(f"{key}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    # z: no -0.000
    return f"{value:z.3f}" if low is None else f"{value:z.3f} ({low:z.2f} … {high:z.2f})"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"


def markdown(table: Table, escaped: Callable[[str], str]) -> str:
    """A Markdown table of escaped cells, padded so that it reads as text too."""
    header, *cells = (tuple(map(escaped, line)) for line in (table.header, *table.lines))
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    rule = [
        "-" * w if i < table.texts else "-" * (w - 1) + ":"
        for i, w in enumerate(map(_wide, widths))
    ]
    text = []
    for line in (header, rule, *cells):
        padded = [
            c.ljust(_wide(w)) if i < table.texts else c.rjust(_wide(w))
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("| " + " | ".join(padded) + " |")
    return "\n".join(text)


def _wide(width: int) -> int:
    return max(3, width)
