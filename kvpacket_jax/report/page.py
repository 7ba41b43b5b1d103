"""A report on finished evaluations: one self-contained HTML page, the same as Markdown, figures."""

import base64
import html
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvpacket_jax.report import figures, results
from kvpacket_jax.report.results import Evaluation, Group, Point, Table

TITLE = "KV Packet: F1 and what it costs"

# key of a summary, axis, unit of the axis in units of the key
COSTS = (
    ("flops_overhead", "overhead FLOPs of a request", 1.0),
    ("flops_total", "FLOPs of a request", 1.0),
    ("ttft_s", "time to the first token, ms", 1e-3),
)

READING = (
    "F1 is the mean SQuAD token F1 over questions, with its 95 % bootstrap interval (sets of "
    "documents are drawn); micro-F1 counts the tokens of all questions together. Differences are "
    "paired, to full_recompute on the same questions. FLOPs are counted on what runs, padding "
    "included; overhead is what a method adds to the question's own pass over a ready cache. TTFT "
    "is the median of interleaved runs, from token ids on the host to the first token's logits; "
    "its bar goes from the fastest run to the slowest, over all timed examples. Points of a method "
    "are joined in the order of its setting. Grey is the Pareto front of all but single_cache, "
    "whose one cache serves just these documents in this order: no other point has a higher F1 for "
    "as little."
)
PUBLISHED_READING = (
    "Other models, other questions, another machine and another count of FLOPs: they are here to "
    "compare shapes, not numbers. F1 is micro-F1, without intervals. The setting of kv_packet "
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
    table: Table | None = None
    published: bool = False


def write_report(
    workdirs: Iterable[str | pathlib.Path], output: str | pathlib.Path
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes report.html, report.md and figures/*.svg to `output`.

    Args:
      workdirs: of evaluations, or folders that have them below, such as a sweep's.

    Returns:
      The paths of page and Markdown.

    Raises:
      FileNotFoundError, ValueError: as `results.read`.
    """
    found, unfinished = results.read(workdirs)
    sections = report(found, unfinished)
    output = pathlib.Path(output).expanduser()
    (output / "figures").mkdir(parents=True, exist_ok=True)
    for shown in (s for section in sections for s in section.shown):
        (output / "figures" / f"{shown.name}.svg").write_text(shown.svg)
    (output / "report.html").write_text(page(sections))
    (output / "report.md").write_text(markdown(sections))
    return output / "report.html", output / "report.md"


def report(evaluations: Sequence[Evaluation], unfinished: Sequence[str] = ()) -> list[Section]:
    """All that is shown: each group of comparable evaluations, F1 by documents, the authors'."""
    groups = results.group(evaluations)
    sections = [_measured(i, group) for i, group in enumerate(groups, 1)]
    if unfinished:
        sections[0] = sections[0]._replace(
            notes=[*sections[0].notes, f"Not finished, left out: {', '.join(unfinished)}."]
        )
    series = results.by_documents(evaluations)
    if series:
        shown = [
            Shown(f"documents_{i}", f"F1 by {s.axis}: {s.title}", figures.by_option(s))
            for i, s in enumerate(series, 1)
        ]
        note = "All else of the data set is held; the numbers are in the tables above."
        sections.append(Section("F1 by number and length of documents", [note], shown))
    datasets = {e.run["dataset"]["name"] for e in evaluations}
    return sections + _published(datasets)


def _measured(number: int, group: Group) -> Section:
    notes = [group.made]
    if len(group.evaluations) > 1:
        names = ", ".join(e.name for e in group.evaluations)
        notes.append(
            f"From {len(group.evaluations)} runs ({names}): times of different runs were not "
            "interleaved."
        )
    shown = []
    for key, axis, unit in COSTS:
        points = results.points(group.rows, key)
        if points:
            svg = figures.tradeoff(points, axis, f"{group.title}\n{group.made}", unit)
            caption = f"F1 against {axis}: {group.title}"
            shown.append(Shown(f"measured_{number}_{key.removesuffix('_s')}", caption, svg))
    return Section(group.title, notes, shown, results.table(group.rows))


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
        table = results.published_table(rows)
        notes = () if sections else (PUBLISHED_READING, f"Source: {source}.")
        sections.append(Section(title, notes, shown, table, published=True))
    return sections


def markdown(sections: Sequence[Section]) -> str:
    """The report as Markdown; figures are files beside it."""
    text = [f"# {TITLE}", READING]
    for s in sections:
        text += [f"## {s.title}", *s.notes]
        text += [f"![{f.caption}](figures/{f.name}.svg)" for f in s.shown]
        text += [results.markdown(s.table)] if s.table else []
    return "\n\n".join(text) + "\n"


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff;
  max-width: 84rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; } .note { color: #444; font-size: .9rem; }
.figures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; } img { width: 100%; max-width: 36rem; height: auto; display: block; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .8rem; margin: 1rem 0;
  font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; }
th { border-bottom: 2px solid #111; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
.published { border: 2px solid #777; border-radius: .4rem; padding: 0 1rem 1rem; margin-top: 3rem;
  background: #f6f6f6; } .published img { background: #fff; }
@media print { body { font-size: 10pt; max-width: none; } .table { overflow: visible; }
  table { font-size: 6.5pt; } th, td { padding: .1rem .25rem; }
  .figures { grid-template-columns: 1fr 1fr; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } }
"""


def page(sections: Sequence[Section]) -> str:
    """The report as one HTML page that refers to nothing outside itself."""
    ours = "".join(_html(s) for s in sections if not s.published)
    theirs = "".join(_html(s) for s in sections if s.published)
    panel = f'<aside class="published">{theirs}</aside>' if theirs else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(TITLE)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(TITLE)}</h1>
<p class="note">{html.escape(READING)}</p>
{ours}
{panel}
</body>
</html>
"""


def _html(s: Section) -> str:
    notes = "".join(f'<p class="note">{html.escape(n)}</p>' for n in s.notes)
    shown = "".join(_image(f) for f in s.shown)
    table = _html_table(s.table) if s.table else ""
    title = html.escape(s.title)
    return f'<section><h2>{title}</h2>{notes}<div class="figures">{shown}</div>{table}</section>\n'


def _image(f: Shown) -> str:
    # As data, not inline: two inline figures would share their ids.
    data = base64.b64encode(f.svg.encode()).decode()
    alt = html.escape(f.caption)
    return f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{data}"></figure>'


def _html_table(table: Table) -> str:
    header, cells = table
    head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in line) + "</tr>" for line in cells
    )
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
