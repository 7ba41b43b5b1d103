"""Training runs side by side: what validation said of each after so many sets of documents."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kvpacket_jax.report.page_tables import Table
from kvpacket_jax.report.results import named_apart, run_name
from kvpacket_jax.runtime.format import number
from kvpacket_jax.train import log

FILE = "metrics.jsonl"  # of a workdir of launch.train
SCORES = {
    "kl": "KL of an answer, nats",
    "same_right": "same answer as the full context, where it is right",
}


class Training(NamedTuple):
    """The validations of a run."""

    name: str
    # Of documents that it had learned from, at each validation; steps of runs that counted none.
    sets: list[int]
    scores: list[dict[str, dict[str, float | None]]]  # by kind, then by key of SCORES


def read(workdirs: Iterable[str | pathlib.Path]) -> list[Training]:
    """The runs in workdirs and the folders below that were validated, in order of their names.

    Raises sealed.Damaged, a ValueError, for metrics that are not as they were written.
    """
    runs = {}
    for top in (pathlib.Path(w).expanduser() for w in workdirs):
        for path in sorted(top.rglob(FILE)):
            run = _training(run_name(top, path.parent, "train"), log.read(path))
            if run.sets:
                runs.setdefault(path.parent.resolve(), run)
    return named_apart(runs)


def _training(name: str, rows: Sequence[Mapping]) -> Training:
    run, sets = Training(name, [], []), 0
    for row in sorted(rows, key=lambda r: (r["step"], "loss" not in r)):  # a step, what it led to
        sets += row.get("sets", 1) if "loss" in row else 0
        if scores := log.scores_of(row):
            run.sets.append(sets)
            run.scores.append(scores)
    return run


def kinds(runs: Sequence[Training]) -> list[str]:
    """The kinds of documents that any of the runs was validated on."""
    return sorted({kind for run in runs for scores in run.scores for kind in scores})


def series(runs: Sequence[Training], kind: str, key: str) -> dict[str, list[tuple[int, float]]]:
    """(sets, score) of each run that was validated on the kind, by its name."""
    lines = {}
    for run in runs:
        both = zip(run.sets, run.scores, strict=True)
        known = [(sets, scores[kind][key]) for sets, scores in both if kind in scores]
        if points := [(sets, score) for sets, score in known if score is not None]:
            lines[run.name] = points
    return lines


def table(runs: Sequence[Training]) -> Table:
    """The last validation of each run: KL and the same answers where right, by kind."""
    shown = kinds(runs)
    rows = []
    for run in runs:
        last = run.scores[-1]
        cells = [
            f"{last[k]['kl']:.2f}, {number(last[k]['same_right'])}" if k in last else "-"
            for k in shown
        ]
        rows.append((run.name, f"{run.sets[-1]:,}", *cells))
    return Table(("run", "sets", *shown), rows)
