"""A report on evaluations and trainings: one self-contained HTML page, as Markdown, figures."""

import base64
import html
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jinja2

from kvpacket_jax.evaluate import summary
from kvpacket_jax.methods import METHODS
from kvpacket_jax.report import curves, figures, page_tables, results
from kvpacket_jax.report.curves import Training
from kvpacket_jax.report.page_tables import Table
from kvpacket_jax.report.results import Evaluation, Group, Point
from models.disk.files import write_whole

TITLE = "KV Packet: F1 and what it costs"
TRAINED = "Training"  # a section
TRAINING_TITLE = "KV Packet: what training does"  # of a page of nothing else

# key of a summary, axis, unit of the axis in units of the key
COSTS = (
    ("flops_overhead", "overhead FLOPs of a request", 1.0),
    ("flops_total", "FLOPs of a request", 1.0),
    ("ttft_s", "time to the first token, ms", 1e-3),
    ("cache_bytes", "MB of stored caches of a request", 1e6),
)

READING = (
    "F1 is the mean SQuAD token F1 over questions, with its 95 % bootstrap interval (sets of "
    "documents are drawn); exact is the share of answers that match a right one; micro-F1 counts "
    "the tokens of all questions together, without punctuation and articles. ÷ full is the share "
    "of full_recompute's F1; differences are paired, to full_recompute on the same questions, "
    '"to bare" to no_recompute, and "to whole" to the method with packets that are not '
    "compressed. same is the share of answers that are "
    "full_recompute's; where right: of those where that one is right; KL all is the "
    "divergence from it, summed over an answer. FLOPs are counted on what runs, padding included; "
    "overhead is what a method adds to the question's own pass over a ready cache. TTFT is the "
    "median of interleaved runs, from token ids on the host to the first token's logits; its bar "
    "goes from the fastest run to the slowest, over all timed examples. Points of a method are "
    "joined in the order of its setting. Grey is the Pareto front of all but single_cache, whose "
    "one cache serves just these documents in this order: no other point has a higher F1 for as "
    "little."
)
TRAINING_READING = (
    "A run's packets against the full context, on validation questions that none was trained on: "
    "in the table KL of an answer, and the share of the same answers where the full context is "
    "right, at the last validation."
)
PUBLISHED_READING = (
    "Other models, other questions, another machine and another count of FLOPs: they are here to "
    "compare shapes, not numbers. F1 is micro-F1, which their code counts with "
    "punctuation and articles, without intervals. The setting of kv_packet "
    "names the data that its adapter was trained on."
)


class Shown(NamedTuple):
    """A figure: its file's name without a suffix, what it shows, and the SVG."""

    name: str
    caption: str
    svg: str


class Section(NamedTuple):
    title: str
    notes: Sequence[str]
    shown: Sequence[Shown]
    tables: Sequence[Table] = ()
    published: bool = False


def write_report(
    workdirs: Iterable[str | pathlib.Path],
    output: str | pathlib.Path,
    published: bool = False,
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes report.html, report.md and figures/*.svg to `output`.

    Args:
      workdirs: of evaluations and trainings, or folders that have them below, such as a sweep's.
      published: adds the authors' own figures, apart from the measured: of the same data sets, or
        all where none is the same.

    Returns:
      The paths of page and Markdown.

    Raises:
      FileNotFoundError, ValueError: as `read`.
    """
    evaluations, unfinished, trainings = read(workdirs)
    sections = report(evaluations, unfinished, published) if evaluations else []
    sections += [_trained(trainings)] if trainings else []
    output = pathlib.Path(output).expanduser()
    for shown in (s for section in sections for s in section.shown):
        write_whole(output / "figures" / f"{shown.name}.svg", shown.svg)
    write_whole(output / "report.html", page(sections))
    write_whole(output / "report.md", markdown(sections))
    return output / "report.html", output / "report.md"


def read(
    workdirs: Iterable[str | pathlib.Path],
) -> tuple[list[Evaluation], list[str], list[Training]]:
    """Finished evaluations, the names of unfinished ones, and trainings that were validated.

    Raises:
      FileNotFoundError, ValueError: as `results.read` and `curves.read`, or nothing to be shown.
    """
    evaluations, unfinished = results.read(workdirs)
    trainings = curves.read(workdirs)
    if not evaluations and not trainings:
        begun = f" (not finished: {', '.join(unfinished)})" if unfinished else ""
        raise ValueError(
            f"No results.json with its run.json in {', '.join(map(str, workdirs))} or below"
            f"{begun}: launch.evaluate writes it at its end. And no training that was validated."
        )
    return evaluations, unfinished, trainings


def report(
    evaluations: Sequence[Evaluation], unfinished: Sequence[str] = (), published: bool = False
) -> list[Section]:
    """All that is shown: each group of comparable evaluations, F1 by documents, the authors'."""
    groups = results.group(evaluations)
    sections = [_measured(i, group) for i, group in enumerate(groups, 1)]
    if unfinished:
        sections[0] = sections[0]._replace(
            notes=[*sections[0].notes, f"Not finished, left out: {', '.join(unfinished)}."]
        )
    series = results.by_documents(evaluations)
    if series:
        shown = []
        for i, s in enumerate(series, 1):
            by_cost = f"F1 against TTFT by {s.axis}: {s.title}"
            shown.append(
                Shown(f"documents_{i}", f"F1 by {s.axis}: {s.title}", figures.by_option(s))
            )
            if s.times:
                shown.append(Shown(f"documents_{i}_ttft", by_cost, figures.by_time(s)))
        note = (
            "All else of the data set is the same; the numbers are in the tables above. Times of "
            "different runs were not interleaved."
        )
        sections.append(Section("F1 by number and length of documents", [note], shown))
    if published:
        sections += _published({e.run["dataset"]["name"] for e in evaluations})
    return sections


def _measured(number: int, group: Group) -> Section:
    notes = [group.conditions]
    if len(group.evaluations) > 1:
        names = ", ".join(e.name for e in group.evaluations)
        notes.append(
            f"From {len(group.evaluations)} runs ({names}): times of different runs were not "
            "interleaved."
        )
    shown = []
    compressed = any(summary.COMPRESSED in row["setting"] for row in group.rows)
    for key, axis, unit in COSTS:
        compared = group.rows
        if key == "cache_bytes":  # which tell of what is kept of documents, where that differs
            compared = [r for r in compared if compressed and METHODS[r["method"]].reads_packets]
        if points := results.points(compared, key):
            svg = figures.tradeoff(points, axis, f"{group.title}\n{group.conditions}", unit)
            caption = f"F1 against {axis}: {group.title}"
            shown.append(Shown(f"measured_{number}_{key.removesuffix('_s')}", caption, svg))
    if doubted := results.doubted(group.rows):
        axis, score = "share of questions read again in full", "right answers that stay the same"
        svg = figures.by_number(doubted, axis, score, f"{group.title}\n{group.conditions}")
        caption = f"{score.capitalize()}, by the {axis}, the most doubtful first: {group.title}"
        shown.append(Shown(f"measured_{number}_doubt", caption, svg))
    rows = group.rows
    tables = [
        page_tables.scores(rows),
        page_tables.kinds(rows),
        page_tables.guarded(rows),
        page_tables.places(rows),
        page_tables.lost(rows, group.answers),
    ]
    return Section(group.title, notes, shown, list(filter(None, tables)))


def _trained(runs: Sequence[Training]) -> Section:
    shown = [
        Shown(
            f"training_{kind}_{key}",
            f"{score}, by sets of documents in training: {kind}",
            figures.by_number(
                points,
                "sets of documents in training",
                score,
                f"Validation on {kind}",
            ),
        )
        for kind in curves.kinds(runs)
        for key, score in curves.SCORES.items()
        if (points := curves.series(runs, kind, key))
    ]
    return Section(TRAINED, [TRAINING_READING], shown, [curves.table(runs)])


def _published(datasets: Iterable[str]) -> list[Section]:
    source, groups = results.published(datasets)
    sections = []
    for (dataset, model), rows in groups.items():
        title = f"As published by the authors: {dataset}, {model}"
        shown = []
        for key, axis, unit in (
            ("flops", "FLOPs as the authors count them", 1.0),
            ("ttft_s", "time to the first token on the authors' GPU, ms", 1e-3),
        ):
            points = [Point(r["method"], r["setting"], r[key], r["f1"]) for r in rows]
            note = f"Published by the authors (arXiv 2604.13226): {dataset}, {model}"
            svg = figures.tradeoff(points, axis, note, unit, "micro-F1")
            name = f"published_{dataset}_{model}_{key.removesuffix('_s')}"
            shown.append(
                Shown(name, f"Published: micro-F1 against {axis}, {dataset}, {model}", svg)
            )
        tables = [page_tables.published(rows)]
        notes = () if sections else (PUBLISHED_READING, f"Source: {source}.")
        sections.append(Section(title, notes, shown, tables, published=True))
    return sections


def page(sections: Sequence[Section]) -> str:
    """The report as one HTML page that refers to nothing outside itself."""
    environment = _environment(autoescape=True)
    environment.filters["base64"] = lambda text: base64.b64encode(text.encode()).decode()
    return _render(environment, "report.html", sections)


def markdown(sections: Sequence[Section]) -> str:
    """The report as Markdown; figures are files beside it."""
    environment = _environment(finalize=lambda x: escaped(x) if isinstance(x, str) else x)
    environment.filters["table"] = lambda t: Verbatim(page_tables.markdown(t, escaped))
    return _render(environment, "report.md", sections)


class Verbatim:
    """Text that is Markdown already."""

    def __init__(self, text: str):
        self._text = text

    def __str__(self) -> str:
        return self._text


def escaped(text: str) -> str:
    """Text as Markdown that shows it: what would be HTML or formatting stands for itself."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within a word it formats nothing


def _environment(**options) -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates")
    return jinja2.Environment(
        loader=loader,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )


def _render(environment: jinja2.Environment, name: str, sections: Sequence[Section]) -> str:
    measured = any(section.title != TRAINED for section in sections)
    title, reading = (TITLE, READING) if measured else (TRAINING_TITLE, "")
    return environment.get_template(name).render(title=title, reading=reading, sections=sections)
