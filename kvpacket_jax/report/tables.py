"""What programs show of answers and results: tables, and rows as JSON."""

import dataclasses
import datetime
import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import rich.box
import rich.table
from rich.text import Text

from kvpacket_jax.evaluate import summary
from kvpacket_jax.evaluate.compare import Comparison, Reply
from kvpacket_jax.evaluate.rows import spec_of
from kvpacket_jax.measure.machine import Machine
from kvpacket_jax.report.costs import COLUMNS, meanings, present, shown
from kvpacket_jax.runtime.format import number
from kvpacket_jax.runtime.format import table as empty_table
from models.disk.files import write_whole

DEMO = ("ttft_s", "load_s", "compose_s", "prefill_s", "flops_total", "flops_overhead")
RUN = (
    *("ttft_s", "to_full", "compose_s", "prefill_s"),
    *("flops_total", "flops_overhead", "xla_flops", "cache_bytes"),
)


def method_table(comparison: Comparison) -> rich.table.Table:
    """One line a method: what is right, TTFT and its parts, FLOPs, mean KL."""
    table = empty_table(("method",), "right", *(COLUMNS[f].heading for f in DEMO), "KL")
    for cost in comparison.costs:
        replies = [r for r in comparison.replies if r.method == cost.method]
        table.add_row(
            cost.method,
            f"{sum(r.right for r in replies)}/{len(replies)}",
            *shown(vars(cost), DEMO),
            f"{sum(r.kl for r in replies) / len(replies):.2f}",
        )
    return table


def method_legend() -> str:
    """What the columns of `method_table` say."""
    return (
        f"{meanings(DEMO)} KL is the divergence of the first token's distribution from "
        "full_recompute's, the mean over questions."
    )


def answer_table(replies: Sequence[Reply]) -> rich.table.Table:
    """Every question with each method's answer."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for name in ("question", "method", "answer"):
        table.add_column(name)
    table.add_column("", no_wrap=True)
    for question in dict.fromkeys(reply.question for reply in replies):
        for i, reply in enumerate(r for r in replies if r.question == question):
            verdict = "[green]right" if reply.right else "[red]wrong"
            text = Text("" if i else question)  # not markup, whatever brackets it has
            table.add_row(text, reply.method, Text(reply.answer), verdict)
        table.add_section()
    return table


def _between(row: Mapping, key: str) -> str:
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return "-" if low is None else f"{low:z.2f} to {high:z.2f}"


_LEGEND = (
    "F1 is the mean token F1 of n questions, with its 95 % bootstrap interval; exact is the share "
    "of answers that match a right one; ÷ full is F1's share of full_recompute's, difference the "
    "95 % interval of the paired difference to it. same: the share of answers that are "
    "full_recompute's; where right: of those where that one is right. "
    "KL first is the divergence from full_recompute at the first token, KL all its sum over the "
    "answer. Intervals are rough below a hundred questions; one set of documents has none."
)


def quality_tables(results: Sequence[Mapping]) -> list[rich.table.Table]:
    """One line a method and setting: what `quality_legend` says.

    A second table has what is looked at less, and what not every data set has: a terminal is too
    narrow for all.
    """
    numbers = lambda key, digits=2: [number(r.get(key), digits) for r in results]  # noqa: E731
    between = lambda key: [_between(r, key) for r in results]  # noqa: E731
    first = {
        "n": [str(r["num_samples"]) for r in results],
        "F1": numbers("f1", 3),
        "95 %": between("f1"),
        "÷ full": numbers("f1_share", 3),
        "difference": between("f1_difference"),
        "same": numbers("agree"),
        "where right": numbers("agree_where_right"),
        "KL all": numbers("kl_answer"),
    }
    second = {"exact": numbers("exact_match"), "KL first": numbers("kl")}
    for name in summary.further(results):
        second[summary.FURTHER[name][0]] = [_further(r, name) for r in results]
    return [_known(results, first), _known(results, second)]


def _known(results: Sequence[Mapping], columns: Mapping[str, list[str]]) -> rich.table.Table:
    """The table without columns that are "-" in every row."""
    kept = {name: cells for name, cells in columns.items() if {*cells} != {"-"}}
    table = empty_table(("method",), *kept)
    for result, *cells in zip(results, *kept.values(), strict=True):
        table.add_row(spec_of(result), *cells)
    return table


def _further(result: Mapping, name: str) -> str:
    """The cell of a figure of `summary.FURTHER`."""
    return _between(result, name) if name in summary.PAIRED else number(result.get(name))


def _scores(summary: Mapping) -> tuple[str, ...]:
    """The cells of n, F1, 95 %, exact, ÷ full, difference and same."""
    return (
        str(summary["num_samples"]),
        number(summary["f1"], 3),
        _between(summary, "f1"),
        number(summary.get("exact_match")),
        number(summary["f1_share"], 3),
        _between(summary, "f1_difference"),
        number(summary["agree"]),
    )


def quality_legend(results: Sequence[Mapping]) -> str:
    """What the columns of `quality_tables` say."""
    texts = [": ".join(summary.FURTHER[name]) for name in summary.further(results)]
    return " ".join([_LEGEND, *(f"{text[0].upper()}{text[1:]}." for text in texts)])


KIND_LEGEND = "By kind of question, the columns as above."


def kind_table(results: Sequence[Mapping]) -> rich.table.Table | None:
    """For each kind a line a method and setting: what `KIND_LEGEND` says; None for one kind."""
    kinds = summary.by_kind(results)
    if not kinds:
        return None
    further = summary.further([part for parts in kinds.values() for _, part in parts])
    columns = ("n", "F1", "95 %", "exact", "÷ full", "difference", "same", "95 %")
    table = empty_table(("kind", "method"), *columns, *(summary.FURTHER[n][0] for n in further))
    for kind, parts in kinds.items():
        for i, (r, part) in enumerate(parts):
            cells = *_scores(part), _between(part, "agree")
            more = (_further(part, name) for name in further)
            table.add_row("" if i else kind or "other", spec_of(r), *cells, *more)
        table.add_section()
    return table


def lost_table(results: Sequence[Mapping]) -> rich.table.Table | None:
    """A line a method and setting, by kind of question: what `summary.LOST` says.

    None where none is lost.
    """
    found = summary.lost(results)
    if not found:
        return None
    table = empty_table(("kind", "method"), "lost", *summary.PLACES.values())
    for kind, parts in itertools.groupby(found, key=lambda each: each[0]):
        for i, (_, r, numbers) in enumerate(parts):
            table.add_row("" if i else kind, spec_of(r), *map(str, numbers))
        table.add_section()
    return table


GUARD_LEGEND = (
    "When in doubt: full_recompute's answer in place of one whose least likely token is less "
    "probable than the limit, or that stands in another document than the one most like the "
    "question; read again is the share of questions where that is so. launch.answer does it "
    "(--recompute_below)."
)


def guard_table(results: Sequence[Mapping]) -> rich.table.Table | None:
    """For each method that reads packets a line a limit: what `GUARD_LEGEND` says."""
    chosen = summary.guarded(results)
    if not chosen:
        return None
    columns = ("limit", "read again", "F1", "÷ full", "same", "where right")
    table = empty_table(("method",), *columns)
    for r in chosen:
        alone = {"below": 0.0, "reread": 0.0}
        some = [g for g in r["guarded"] if g["below"] in summary.SHOWN_GUARDS]
        for i, guarded in enumerate([r | alone, *some]):
            table.add_row(
                "" if i else spec_of(r),
                f"{guarded['below']:g}",
                f"{guarded['reread']:.0%}",
                number(guarded["f1"], 3),
                number(guarded["f1_share"], 3),
                number(guarded["agree"]),
                number(guarded["agree_where_right"]),
            )
        table.add_section()
    return table


def cost_table(results: Sequence[Mapping]) -> rich.table.Table:
    """One line a method and setting: TTFT with its parts, FLOPs, bytes stored."""
    fields = present(results, RUN)
    table = empty_table(("method",), *(COLUMNS[f].heading for f in fields))
    for r in results:
        table.add_row(spec_of(r), *shown(r, fields))
    return table


def cost_legend(results: Sequence[Mapping]) -> str:
    """What the columns of `cost_table` say."""
    return meanings(["load_s", *present(results, RUN)])


def write_json(path: str | os.PathLike, rows: Sequence[Mapping], machine: Machine) -> None:
    """Writes a list of rows, each with the machine it was made on, and the date."""
    about = {"machine": dataclasses.asdict(machine), "date": datetime.date.today().isoformat()}
    text = json.dumps([{**row, **about} for row in rows], indent=1)
    write_whole(pathlib.Path(path).expanduser(), text + "\n")
