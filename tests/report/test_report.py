"""Reports: what may stand together, points, fronts, tables, and a page that needs nothing else."""

import base64
import io
import itertools
import json
import re
import types

import pytest
import rich.console

from kvpacket_jax import compress
from kvpacket_jax.evaluate import summary
from kvpacket_jax.evaluate.rows import RowFile, spec_of
from kvpacket_jax.report import figures, page, page_tables, results, tables
from kvpacket_jax.report.results import Point
from kvpacket_jax.runtime import sealed

MACHINE = {
    "device": "A <CPU> & more",
    "platform": "cpu",
    "devices": 1,
    "threads": 2,
    "jax_version": "1.2.3",
    "dtype": "float32",
    "peak": 1e12,
    "bandwidth": 1e10,
}
RUN = {
    "model": "0123456789abcdef",
    "dtype": "float32",
    "adapter": "one",
    "template": "t",
    "dataset": {
        "name": "biography",
        "split": "test",
        "options": {"num_documents": 5, "document_words": [60, 80]},
    },
    "num_samples": 4,
    "new_tokens": 8,
    "seed": 0,
}

# label -> (F1 of each question, overhead FLOPs, runs in seconds)
FOUND = {
    "full_recompute": ([1, 1, 1, 0], 2e11, (1.0, 1.2, 1.1)),
    "kv_packet": ([1, 1, 0, 0], -3e7, (0.10, 0.12, 0.11)),
    "cache_blend:ratio=0.9": ([1, 1, 1, 0], 1e11, (0.9, 0.8, 1.0)),
    "cache_blend:ratio=0.15": ([1, 0, 0, 0], 2e10, (0.4, 0.3, 0.5)),
    "no_cache": ([0, 0, 0, 0], 0.0, (0.01, 0.02, 0.03)),
}


def answers(found=FOUND) -> list[dict]:
    return [
        {
            "example": f"set-{i // 2}",
            "question": i % 2,
            "method": label.partition(":")[0],
            "setting": label.partition(":")[2],
            "asked": f"Which *colour* has {i}?",
            "answer": "red" if value else "blue",
            "expected": ["red"],
            "f1": value,
            "exact_match": bool(value),
            "same": bool(value),
            "kl": 1.0,
            "kl_answer": 2.0,
            "confidence": None if label == "full_recompute" else (i + 1) / 5,
            "elsewhere": False,
        }
        for label, (f1, *_) in found.items()
        for i, value in enumerate(f1)
    ]


def summaries(found=FOUND, **machine) -> list[dict]:
    costs = {
        label: {
            "ttft_s": sorted(runs)[1],
            "ttft_runs": [list(runs)],
            "flops_total": overhead + 1e10,
            "flops_overhead": overhead,
            "cache_bytes": 5_000_000.0,
        }
        for label, (_, overhead, runs) in found.items()
    }
    about = {"machine": MACHINE | machine, "date": "2026-01-02", "model": "small"}
    return [s | costs[spec_of(s)] | about for s in summary.aggregate(answers(found))]


def write(folder, rows=None, options=None, **run):
    run = RUN | run
    run["dataset"] = RUN["dataset"] | {"options": RUN["dataset"]["options"] | (options or {})}
    run["examples"] = f"digest of {run['dataset']}"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(sealed.stamped(run)))
    if rows is not False:
        (folder / "results.json").write_text(
            json.dumps([sealed.stamped(r) for r in rows or summaries()])
        )
    return folder


@pytest.fixture
def plain(monkeypatch):
    """No figures: they take most of the time."""
    for name in ("tradeoff", "by_option", "by_number"):
        monkeypatch.setattr(figures, name, lambda *_: "<svg></svg>")


def read_group(*workdirs) -> list[results.Group]:
    return results.group(results.read(workdirs)[0])


def cells(markdown: str, method: str) -> list[str]:
    line = next(t for t in markdown.splitlines() if t.startswith(f"| {method} "))
    return [c.strip() for c in line.strip("|").split("|")]


def test_markdown_has_the_numbers(tmp_path, plain):
    write(tmp_path / "one")
    _, path = page.write_report([tmp_path], tmp_path / "report")
    text = path.read_text()
    packet = dict(zip(cells(text, "method"), cells(text, "kv_packet"), strict=True))
    assert packet["n"] == "4" and packet["÷ full (95 %)"].startswith("0.667 (0.00")
    # Two sets of F1 (1, 1) and (0, 0), where full_recompute has (1, 1) and (1, 0).
    assert packet["F1 (95 %)"] == "0.500 (0.00 … 1.00)"
    assert packet["difference (95 %)"] == "-0.250 (-0.50 … 0.00)"
    assert packet["TTFT ms"] == "110" and packet["cache bytes"] == "5 M"
    assert packet["overhead"] == "-30 M" and packet["FLOPs"] == "9.97 G"
    full = dict(zip(cells(text, "method"), cells(text, "full_recompute"), strict=True))
    assert full["difference (95 %)"] == "-" and full["overhead"] == "200 G"
    assert "small, float32; A &lt;CPU&gt; &amp; more, 2 threads, jax 1.2.3; 2026-01-02" in text
    for name in re.findall(r"\]\((figures/.*?)\)", text):
        assert (path.parent / name).read_text().rstrip().endswith("</svg>")


def test_points_carry_intervals_and_the_range_of_times():
    rows = summaries()
    packet = next(p for p in results.points(rows, "ttft_s") if p.method == "kv_packet")
    assert packet == Point("kv_packet", "", 0.11, 0.5, 0.0, 1.0, 0.10, 0.12)
    overhead = {(p.method, p.setting): p.x for p in results.points(rows, "flops_overhead")}
    assert overhead["kv_packet", ""] == -3e7 and overhead["cache_blend", "ratio=0.15"] == 2e10
    unknown = [rows[0] | {"flops_total": None}, *rows[1:]]
    assert len(results.points(unknown, "flops_total")) == len(rows) - 1


def test_lines_join_where_one_number_varies():
    settings = {
        "infoflow": ("ratio=0.9", "ratio=0.15", "ratio=0.3,reorder=true"),
        "kv_packet": ("header_8_trailer_8", "header_4_trailer_4"),
        "sam_kv": ("large", "small"),
    }
    points = [Point(m, s, 1.0, 0.5) for m, names in settings.items() for s in names]
    found = [[p.setting for p in line] for line in results.lines(points)]
    assert found[0] == ["ratio=0.15", "ratio=0.9"]
    assert [line[0] for line in found[1:]] == [
        "ratio=0.3,reorder=true",
        *settings["kv_packet"],
        *settings["sam_kv"],
    ]
    labels = [results.label(line) for line in results.lines(points)]
    assert labels[:2] == ["infoflow", "infoflow ratio=0.3,reorder=true"]


def test_bytes_are_shown_where_packets_are_compressed(tmp_path):
    write(tmp_path / "whole")
    found = {f"kv_packet:compress=snapkv,keep={k}": FOUND["kv_packet"] for k in (0.5, 0.25)}
    write(tmp_path / "small", summaries(FOUND | found), {"num_documents": 10})
    small, whole = page.report(results.read([tmp_path])[0])[:2]
    assert not [s.name for s in whole.shown if "cache_bytes" in s.name]
    (shown,) = [s for s in small.shown if "cache_bytes" in s.name]
    # What stores no documents would beat all that does.
    assert "full_recompute" not in shown.svg
    assert "kv_packet snapkv" in shown.svg and "MB of stored caches" in shown.svg
    assert figures.COMPRESSORS.keys() == compress.COMPRESSORS.keys()


def test_pareto_front_is_what_nothing_beats():
    xy = [(0, 0.1), (5, 0.5), (5, 0.6), (7, 0.6), (9, 0.55), (10, 0.9), (-1, 0.05)]
    points = [Point("m", str(i), x, y) for i, (x, y) in enumerate(xy)]
    front = results.pareto([Point("single_cache", "", 0, 1.0), *points])
    assert [(p.x, p.f1) for p in front] == [(-1, 0.05), (0, 0.1), (5, 0.6), (10, 0.9)]


def test_only_what_is_comparable_stands_together(tmp_path, plain):
    write(tmp_path / "a")
    other = {"no_recompute": ([0, 0, 1, 0], 1e7, (0.1,) * 3), "kv_packet": FOUND["full_recompute"]}
    write(tmp_path / "b/evaluate", summaries(other, peak=2e12), adapter="two")
    write(tmp_path / "machine", summaries(device="another"))
    write(tmp_path / "questions", options={"num_documents": 10})
    groups = read_group(tmp_path)
    names = [[e.name for e in g.evaluations] for g in groups]
    assert names == [["a", "b"], ["machine"], ["questions"]]
    labels = [(r["method"], r["setting"]) for r in groups[0].rows]
    assert labels == [
        ("full_recompute", ""),
        ("kv_packet", "a"),
        ("kv_packet", "b"),
        ("cache_blend", "ratio=0.15"),
        ("cache_blend", "ratio=0.9"),
        ("no_cache", ""),
        ("no_recompute", ""),
    ]
    adapters = {r["setting"]: r["f1"] for r in groups[0].rows if r["method"] == "kv_packet"}
    assert adapters == {"a": 0.5, "b": 0.75}
    sections = page.report(results.read([tmp_path])[0])
    assert "not interleaved" in sections[0].notes[1] and len(sections[1].notes) == 1


def test_adapters_of_folders_with_one_name_are_told_apart(tmp_path):
    folders = [write(tmp_path / f"{name}/bio", adapter=name) for name in "ab"]
    (group,) = read_group(*folders)
    labels = [r["setting"] for r in group.rows if r["method"] == "kv_packet"]
    assert labels == [str(folder) for folder in folders]


def test_primers_of_a_sweep_stand_together(tmp_path):
    found = FOUND | {"primed": ([1, 1, 0, 0], 1e7, (0.1,) * 3)}
    for name in ("one", "three"):
        write(tmp_path / name / "evaluate", summaries(found), adapter="none", primer=name)
    write(tmp_path / "later" / "evaluate", adapter="one", primer="none")
    (group,) = read_group(tmp_path)
    labels = {m: [r["setting"] for r in group.rows if r["method"] == m] for m in found}
    assert labels["primed"] == ["one", "three"] and labels["kv_packet"] == [""]


def test_series_by_documents_hold_all_else(tmp_path):
    better = summaries(FOUND | {"kv_packet": ([1, 1, 1, 1], 1e7, (0.1,) * 3)})
    write(tmp_path / "10", better, {"num_documents": 10})
    write(tmp_path / "5")
    write(tmp_path / "long", None, {"document_words": [100, 140]})
    write(tmp_path / "other", None, {"num_documents": 20}, adapter="two")
    number, length = results.by_documents(results.read([tmp_path])[0])
    assert number.axis == "documents a question" and length.axis == "words a document"
    packet = [(p.x, p.f1) for p in number.points if p.method == "kv_packet"]
    assert packet == [(5, 0.5), (10, 1.0)]
    assert {p.x for p in length.points} == {70, 120}
    assert [(p.x, p.f1) for p in number.times if p.method == "kv_packet"] == [(0.11, 0.5), (0.1, 1)]
    assert "TTFT, ms; lines go through documents a question" in figures.by_time(number)
    assert number.title == "biography, document_words 60-80"
    assert length.title == "biography, num_documents 5"


def test_page_refers_to_nothing_outside_and_keeps_the_authors_apart(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two", None, {"num_documents": 7})
    write(tmp_path / "begun", False)
    plain = page.write_report([tmp_path], tmp_path / "report")[0].read_text()
    html = page.write_report([tmp_path], tmp_path / "report", published=True)[0].read_text()
    text = re.sub(r'src="data:image/svg\+xml;base64,[^"]+"', "", html)
    assert not re.search("src|href|url|@import|<script|<link|//", text)
    assert "A &lt;CPU&gt; &amp; more" in html and "<CPU>" not in text
    assert "left out: begun" in html
    svgs = [base64.b64decode(s).decode() for s in re.findall(r"base64,([^\"]+)", html)]
    for svg in svgs:
        assert all(t[:1] == "#" for t in re.findall(r"(?:href=\"|url\()([^\")]*)", svg))
    ours, theirs = html.split('<aside class="published">')
    assert plain.split("</body>")[0].strip() == ours.strip()  # theirs only if asked for
    assert "llama_3_1_8b" not in ours and "llama_3_1_8b" in theirs
    assert "musique, llama" not in theirs and "small, float32" not in theirs
    assert len(re.findall("<img ", ours)) == 2 * 4 + 2 and len(svgs) == 10 + 4


def test_markdown_shows_text_as_it_is(tmp_path, plain):
    rows = summaries()
    rows[1] |= {"setting": "a|b"}
    write(tmp_path / "one", rows, {"path": "<img src=x> *.[1](y) _z_ a_b ~~no~~ $x$"})
    _, path = page.write_report([tmp_path], tmp_path / "report")
    text = path.read_text()
    shown = r"path &lt;img src=x&gt; \*.\[1\](y) \_z\_ a_b \~\~no\~\~ \$x\$"
    assert f"## biography, document_words 60-80, num_documents 5, {shown}" in text
    assert "<" not in text.replace("&lt;", "") and r"| a\|b " in text
    scores = text.partition("With full_recompute's answer")[0]
    lines = [t for t in scores.splitlines() if t.startswith("| ")]
    assert len({len(t) for t in lines}) == 1  # the columns are still aligned


def test_published_figures_are_the_authors():
    source, groups = results.published(["wikipedia"])
    assert "2604.13226" in source and len(groups) == 8  # none of that set: all are shown
    rows = groups["biography", "llama_3_1_8b"]
    packet = next(r for r in rows if (r["method"], r["setting"]) == ("kv_packet", ""))
    assert (packet["f1"], packet["ttft_s"], packet["flops"]) == (0.9431, 0.0447, 57131827)
    blend = next(r for r in rows if r["setting"] == "ratio=0.3" and r["method"] == "cache_blend")
    assert blend["f1"] == 0.9062


def test_axis_shows_zero_negative_and_large_costs():
    xs = (-3e7, 0.0, 4e6, 2e11)
    figure, axes = figures._figure("x", "note", "F1")
    figures._scale(axes, xs)
    shown = axes.transData.transform([(x, 0.5) for x in xs])[:, 0]
    low, high = axes.transData.transform([(x, 0) for x in axes.get_xlim()])[:, 0]
    assert low < shown[0] < shown[1] < shown[2] < shown[3] < high
    apart = (high - low) / 25
    assert all(b - a > apart for a, b in itertools.pairwise(shown))
    ticks = list(axes.xaxis.get_major_locator()())
    assert 0 in ticks and len(ticks) <= figures.TICKS + 2 and min(ticks) == -1e7
    figures.plt.close(figure)


def test_what_cannot_be_reported_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        results.read([tmp_path / "none"])
    write(tmp_path / "begun", False)
    with pytest.raises(ValueError, match=r"not finished: begun.*launch.evaluate"):
        page.write_report([tmp_path], tmp_path / "report")
    (tmp_path / "begun/results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"begun/results.json and its run.json are not"):
        results.read([tmp_path])


def test_reading_again_in_doubt_is_a_line_from_packets_to_the_full_context(tmp_path, plain):
    (line,) = results.doubted(summaries()).items()
    assert line[0] == "kv_packet"  # the others read no packets, and cannot be in doubt of them
    assert line[1][0] == (0.0, pytest.approx(2 / 3)) and line[1][-1] == (1.0, 1.0)
    assert line[1][3] == (0.25, pytest.approx(2 / 3))  # below .3: an answer that was the same
    assert line[1][7] == (0.75, 1.0)  # below .7
    page.write_report([write(tmp_path / "run")], tmp_path / "report")
    assert (tmp_path / "report" / "figures" / "measured_1_doubt.svg").exists()
    earlier = [{k: v for k, v in s.items() if k != "guarded"} for s in summaries()]
    assert results.doubted(earlier) == {}


def test_what_packets_lose_is_shown_with_what_they_say(tmp_path, plain):
    found = FOUND | {"no_recompute": ([0, 1, 0, 0], 0.0, (0.1, 0.1, 0.1))}
    folder = write(tmp_path / "run", summaries(found))
    rows = RowFile(folder / "rows.jsonl")
    for example in ("set-0", "set-1"):
        rows.write([r for r in answers(found) if r["example"] == example])
    (group,) = read_group(folder)
    table = page_tables.lost(group.rows, group.answers)
    assert table.header == ("question", "full_recompute", "kv_packet", "no_recompute")
    assert table.lines == [("Which *colour* has 2?", "red", "blue", "blue")]
    lost = "full_recompute has 3 of 4 questions right; kv_packet loses 1 of them."
    assert table.caption.startswith(lost)
    shown = page.write_report([folder], tmp_path / "report")[1].read_text()
    assert "| Which \\*colour\\* has 2? | red" in shown
    assert "| read again |" in shown and re.search(r"\| kv_packet +\| +0.5 \| +50% \|", shown)
    # Of more than fit some are shown, from all sets; of answers that are not there, none.
    many = [
        r | {"example": f"{i:03}", "asked": f"{i:03} {'x' * 99}"}
        for i in range(100)
        for r in group.answers
        if r["question"] == 0 and r["example"] == "set-1"
    ]
    for number in (13, 100):
        table = page_tables.lost(group.rows, [r for r in many if int(r["example"]) < number])
        assert len(table.lines) == page_tables.EXAMPLES
    assert table.lines[-1][0] > "09"
    assert all(len(cell) <= page_tables.LONGEST for line in table.lines for cell in line)
    assert page_tables.lost(group.rows, []) is None


def test_brackets_of_an_answer_are_no_markup():
    row = types.SimpleNamespace(question="Which [b]?", method="it", answer="[/INST]", right=True)
    out = io.StringIO()
    rich.console.Console(file=out, width=110).print(tables.answer_table([row]))
    assert "Which [b]?" in out.getvalue() and "[/INST]" in out.getvalue()


def test_the_pages_kinds_are_told_apart_by_run_and_setting():
    part = {"method": "primed", "setting": "", "num_samples": 3, "f1": 0.5}
    rows = [
        part | {"setting": name, "kinds": {"1_hop": part, "2_hop": part | {"f1": f1}}}
        for name, f1 in (("one", 0.25), ("other", 0.75))
    ]
    table = page_tables.kinds(rows)
    assert [line[:4] for line in table.lines] == [
        ("1_hop", "primed:one", "3", "0.500"),
        ("1_hop", "primed:other", "3", "0.500"),
        ("2_hop", "primed:one", "3", "0.250"),
        ("2_hop", "primed:other", "3", "0.750"),
    ]
    assert page_tables.kinds([part]) is None


def test_kinds_are_apart_with_their_intervals_and_lost_answers_by_place():
    row = {"method": "kv_packet", "setting": ""}
    part = row | {"num_samples": 3, "f1": 0.5, "exact_match": 0.25, "f1_share": 0.75, "agree": 0.25}
    part |= {"f1_low": 0.4, "f1_high": 0.6, "f1_difference_low": -0.1, "f1_difference_high": 0.1}
    part |= {"agree_low": 0.0, "agree_high": 1.0, "lost": {"gold": 2, "nowhere": 1, "": 1}}
    text = io.StringIO()
    console = rich.console.Console(file=text, width=110)
    found = [row | {"kinds": {"1_hop": part, "2_hop": None}}]
    console.print(tables.kind_table(found), tables.lost_table(found))
    assert "2_hop" not in text.getvalue()
    lines = [line.split() for line in text.getvalue().splitlines() if "kv_packet" in line]
    scores = "1_hop kv_packet 3 0.500 0.40 to 0.60 0.25 0.750 -0.10 to 0.10 0.25 0.00 to 1.00"
    assert lines == [scores.split(), "1_hop kv_packet 4 2 0 1 0 0 1".split()]
    assert tables.kind_table([row]) is tables.lost_table([row]) is None
