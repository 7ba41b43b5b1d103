"""Finished evaluations from their workdirs: what may be compared, as points and table cells."""

import collections
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from kvpacket_jax.evaluate import summary
from kvpacket_jax.evaluate.rows import RowFile, spec_of
from kvpacket_jax.methods import METHODS
from kvpacket_jax.runtime import resume, sealed

PUBLISHED = pathlib.Path(__file__).parent / "published_results.json"

# Options of data sets that say how many documents there are, or how long: on a figure's axis.
DOCUMENT_OPTIONS = {
    "num_documents": "documents a question",
    "document_words": "words a document",
    "num_chunks": "documents a question",
    "num_tokens": "tokens in all documents",
    "num_distractors": "paragraphs beside those that the question needs",
}

# What only methods of that role depend on, in run.json.
ROLES = ("adapter", "primer")
NONE = {None, "none"}  # where no method has a role
BOUND = "single_cache"  # no rival: its cache holds just these documents in this order
NUMBER = r"\d+(?:\.\d+)?"
Named = TypeVar("Named", bound=tuple)  # with a name
MEASURED = ("peak", "bandwidth")  # of a machine, measured again in every run


class Evaluation(NamedTuple):
    """A workdir of launch.evaluate that is finished."""

    name: str
    run: dict  # run.json: all that the answers depend on
    rows: list[dict]  # results.json: a summary for each method and setting
    date: str  # when it was timed
    answers: list[dict]  # of rows.jsonl, one for each question and method


class Group(NamedTuple):
    """Evaluations of the same questions with the same model on the same machine."""

    evaluations: list[Evaluation]
    rows: list[dict]  # theirs together, each once; an adapter that differs is in its setting
    answers: list[dict]  # likewise

    @property
    def run(self) -> dict:
        return self.evaluations[0].run

    @property
    def title(self) -> str:
        return _title(self.run["dataset"])

    @property
    def conditions(self) -> str:
        """Model, dtype, machine and date."""
        machine = self.rows[0]["machine"]
        model = self.rows[0].get("model") or f"model {self.run['model'][:8]}"
        devices = f"{machine['devices']} x " if machine["devices"] > 1 else ""
        dates = sorted({e.date for e in self.evaluations})
        return (
            f"{model}, {machine['dtype']}; {devices}{machine['device']}, {machine['threads']} "
            f"threads, jax {machine['jax_version']}; {' to '.join(dates[:: len(dates) - 1 or 1])}"
        )


class Point(NamedTuple):
    """F1 with its 95 % interval (None where unknown) at x with its range."""

    method: str
    setting: str
    x: float
    f1: float
    f1_low: float | None = None
    f1_high: float | None = None
    x_low: float | None = None
    x_high: float | None = None


def read(workdirs: Iterable[str | pathlib.Path]) -> tuple[list[Evaluation], list[str]]:
    """The finished evaluations in workdirs and the folders below, and the unfinished ones' names.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: a file that is not launch.evaluate's.
    """
    finished, unfinished = {}, []
    for top in (pathlib.Path(w).expanduser() for w in workdirs):
        if not top.is_dir():
            raise FileNotFoundError(f"There is no folder {str(top)!r}.")
        for path in sorted(top.rglob("run.json")):
            folder = path.parent
            name = run_name(top, folder, "evaluate")
            if not (folder / "results.json").exists():
                unfinished.append(name)
            elif folder.resolve() not in finished:
                finished[folder.resolve()] = _read_one(name, folder)
    return named_apart(finished), unfinished


def named_apart(runs: Mapping[pathlib.Path, Named]) -> list[Named]:
    """The runs of folders; those that share a name are called by their folders."""
    names = collections.Counter(run.name for run in runs.values())
    return [
        run if names[run.name] == 1 else run._replace(name=str(folder))
        for folder, run in runs.items()
    ]


def run_name(top: pathlib.Path, folder: pathlib.Path, program: str) -> str:
    """What a run is called: its folder below `top`, the program's in a sweep's member left out."""
    parts = folder.relative_to(top).parts
    parts = parts[:-1] if parts[-1:] == (program,) else parts
    return "/".join(parts) or top.resolve().name


def _read_one(name: str, folder: pathlib.Path) -> Evaluation:
    path = folder / "results.json"
    anew = "Run launch.evaluate again, in another --workdir."
    try:
        run = sealed.read_json(folder / "run.json", anew)
        rows = sealed.read_json(
            path, "Run launch.evaluate there again: its answers are kept.", list
        )
        _ = run["dataset"]["options"], [(r["method"], r["f1"], r["machine"]) for r in rows]
        date = rows[0]["date"]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path} and its run.json are not launch.evaluate's, or an earlier version's: "
            f"{error!r}. {anew}"
        ) from error
    if unknown := sorted({r["method"] for r in rows} - METHODS.keys()):
        raise ValueError(
            f"{path} has answers of {', '.join(unknown)}, which is no method here: report where "
            "it is one, or remove its lines from rows.jsonl and run launch.evaluate again."
        )
    return Evaluation(name, run, rows, date, RowFile(folder / "rows.jsonl").rows)


def group(evaluations: Sequence[Evaluation]) -> list[Group]:
    """Puts together what has the same questions, model and machine; adapters, primers may differ.

    A method and setting that several evaluations of a group share is taken from the first.
    """
    groups: dict[str, list[Evaluation]] = {}
    for e in evaluations:
        machine = _machine(e)
        questions = {k: v for k, v in resume.wherever(e.run).items() if k not in ROLES}
        groups.setdefault(json.dumps([questions, machine], sort_keys=True), []).append(e)
    return [_group(members) for members in groups.values()]


def _machine(e: Evaluation) -> dict:
    return {k: v for k, v in e.rows[0]["machine"].items() if k not in MEASURED}


def _group(evaluations: Sequence[Evaluation]) -> Group:
    several = {role for role in ROLES if len({e.run.get(role) for e in evaluations} - NONE) > 1}

    def named(e: Evaluation, r: dict) -> dict:
        own = METHODS[r["method"]].adapter_role in several
        return r | {"setting": ", ".join(filter(None, (r["setting"], e.name)))} if own else r

    rows: dict[tuple, dict] = {}
    answers: dict[tuple, dict] = {}
    for e in evaluations:
        for r in (named(e, r) for r in e.rows):
            rows.setdefault((r["method"], r["setting"]), r)
        for r in (named(e, r) for r in e.answers):
            answers.setdefault((r["example"], r["question"], r["method"], r["setting"]), r)
    order = list(dict.fromkeys(method for method, _ in rows))
    by_method = sorted(
        rows.values(), key=lambda r: (order.index(r["method"]), _numbers(r["setting"]))
    )
    return Group(list(evaluations), by_method, list(answers.values()))


def _numbers(setting: str) -> list[float]:
    return [float(n) for n in re.findall(NUMBER, setting)]


def points(rows: Sequence[dict], key: str) -> list[Point]:
    """One point a row at its `key`; rows without one are left out. For "ttft_s" with its range."""
    points = []
    for r in rows:
        if r.get(key) is None:
            continue
        runs = [s for example in r.get("ttft_runs") or () for s in example]
        ends = (min(runs), max(runs)) if key == "ttft_s" and runs else (None, None)
        f1 = (r["f1"], r.get("f1_low"), r.get("f1_high"))
        points.append(Point(r["method"], r["setting"], r[key], *f1, *ends))
    return points


def lines(points: Sequence[Point]) -> list[list[Point]]:
    """Points to be joined: of a method, where one number of its setting alone varies."""
    alike: dict[tuple[str, str], list[Point]] = {}
    for p in points:
        alike.setdefault((p.method, re.sub(NUMBER, "#", p.setting)), []).append(p)
    joined = []
    for group in alike.values():
        if len(_numbers(group[0].setting)) == 1:
            joined.append(sorted(group, key=lambda p: _numbers(p.setting)))
        else:
            joined += [[p] for p in group]
    return joined


def label(line: Sequence[Point]) -> str:
    """The method and what of its setting is the same in all points."""
    setting = line[0].setting
    if len(line) > 1 and line[1].setting != setting:
        setting = ",".join(s for s in setting.split(",") if not re.search(NUMBER, s))
    return " ".join(filter(None, (line[0].method, setting.removeprefix(summary.COMPRESSED))))


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none has a higher F1 at no more x. By ascending x.

    Those of BOUND are neither among them nor among those that beat.
    """
    front: list[Point] = []
    for p in sorted((p for p in points if p.method != BOUND), key=lambda p: (p.x, -p.f1)):
        if not front or p.f1 > front[-1].f1:
            front.append(p)
    return front


def doubted(rows: Sequence[dict]) -> dict[str, list[tuple[float, float]]]:
    """By method that reads packets, what reading again in doubt does: the share of questions that
    full_recompute answers in its place, and of its right answers those that then are the same."""
    key = "agree_where_right"
    return {
        spec_of(r): [(0.0, r[key]), *((g["reread"], g[key]) for g in r["guarded"]), (1.0, 1.0)]
        for r in summary.guarded(rows)
        if r[key] is not None
    }


class Series(NamedTuple):
    """F1 by one option of a data set, all else equal."""

    title: str
    axis: str
    conditions: str
    points: list[Point]  # x: the option
    # x: seconds to the first token; in the order of the option. None where machines differ.
    times: list[Point]


# What differs with the documents, in run.json.
OF_THE_DATA = ("dataset", "examples", "num_samples")


def by_documents(evaluations: Sequence[Evaluation]) -> list[Series]:
    """F1 by number and by length of documents, where at least two evaluations differ in it alone.

    An option that is a range stands at its middle.
    """
    series = []
    for option, axis in DOCUMENT_OPTIONS.items():
        alike: dict[str, dict[float, Evaluation]] = {}
        for e in evaluations:
            options = dict(e.run["dataset"]["options"])
            if option not in options:
                continue
            value = options.pop(option)
            rest = {k: v for k, v in e.run.items() if k not in OF_THE_DATA}
            dataset = e.run["dataset"] | {"options": options}
            key = json.dumps([rest, dataset], sort_keys=True)
            alike.setdefault(key, {}).setdefault(_middle(value), e)
        for by_value in alike.values():
            if len(by_value) > 1:
                series.append(_series(option, axis, by_value))
    return series


def _series(option: str, axis: str, by_value: Mapping[float, Evaluation]) -> Series:
    evaluations = [by_value[x] for x in sorted(by_value)]
    title = _title(evaluations[0].run["dataset"], without=option)
    machines = dict.fromkeys(Group([e], e.rows, []).conditions for e in evaluations)
    placed = [p._replace(x=x) for x in sorted(by_value) for p in points(by_value[x].rows, "f1")]
    times = []
    if len({json.dumps(_machine(e), sort_keys=True) for e in evaluations}) == 1:
        times = [p for e in evaluations for p in points(e.rows, "ttft_s")]
    return Series(title, axis, "\n".join(machines), placed, times)


def _title(dataset: Mapping, without: str = "") -> str:
    left_out = without, "ids", "folder"  # the last two: where files lie
    shown = {k: v for k, v in sorted(dataset["options"].items()) if k not in left_out and v != ""}
    order = ["best document first"] if dataset.get("best_first") else []
    described = (f"{k} {_plain(v)}" for k, v in shown.items())
    return ", ".join([dataset["name"], *described, *order])


def _middle(value) -> float:
    return sum(value) / len(value) if isinstance(value, (list, tuple)) else float(value)


def _plain(value) -> str:
    if isinstance(value, (list, tuple)):
        numbers = all(isinstance(v, (int, float)) for v in value)
        return ("-" if numbers and len(value) == 2 else " ").join(map(str, value))
    return str(value)


# ---- the authors' figures


def published(datasets: Iterable[str]) -> tuple[str, dict[tuple[str, str], list[dict]]]:
    """The authors' own figures: their source, and rows by (data set, model).

    Only those of `datasets`, if there are any; else all.
    """
    file = json.loads(PUBLISHED.read_text())
    rows: dict[tuple[str, str], list[dict]] = {}
    known = {r["dataset"] for r in file["rows"]}
    chosen = known & set(datasets) or known
    for r in file["rows"]:
        if r["dataset"] in chosen:
            rows.setdefault((r["dataset"], r["model"]), []).append(r)
    return file["source"], rows
