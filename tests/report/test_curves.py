"""Training runs side by side: sets of documents are counted, and every run is drawn and listed."""

import re

from kvpacket_jax.report import curves, page
from kvpacket_jax.train.log import Log


def write(folder, per_step: int, kl: dict[int, float], kind: str = "notes", same_right=0.5):
    """A run of two steps that was validated at some of them."""
    folder.mkdir(parents=True)
    log = Log(folder / curves.FILE, 0)
    for step in range(3):
        if step:
            log.write({"step": step, "loss": 1.0, "kl": 1.0, "sets": per_step})
        if step in kl:
            log.validation(step, {kind: {"kl": kl[step], "same_right": same_right, "questions": 9}})
    log.flush()


def test_sets_are_counted_up_to_each_validation(tmp_path):
    write(tmp_path / "small" / "train", 2, {0: 3.0, 2: 1.0})
    write(tmp_path / "large", 6, {1: 2.0}, "other")
    write(tmp_path / "begun", 6, {})
    large, small = curves.read([tmp_path, tmp_path / "large"])  # each once
    assert (small.name, small.sets, large.name, large.sets) == ("small", [0, 4], "large", [6])
    assert curves.kinds([small, large]) == ["notes", "other"]
    assert curves.series([small, large], "notes", "kl") == {"small": [(0, 3.0), (4, 1.0)]}
    assert curves.table([large, small]).lines == [
        ("large", "6", "-", "2.00, 0.50"),
        ("small", "4", "1.00, 0.50", "-"),
    ]


def test_runs_of_one_name_are_called_by_their_folders(tmp_path):
    write(tmp_path / "a" / "small", 2, {0: 3.0})
    write(tmp_path / "b" / "small", 2, {0: 2.0})
    found = curves.read([tmp_path / "a", tmp_path / "b"])
    lines = curves.series(found, "notes", "kl")
    assert lines == {str(tmp_path / x / "small"): [(0, kl)] for x, kl in (("a", 3.0), ("b", 2.0))}


def test_a_page_of_trainings_alone(tmp_path):
    write(tmp_path / "runs" / "one", 1, {0: 3.0, 2: 1.0})
    write(tmp_path / "runs" / "two", 1, {0: 3.0, 2: 2.0})
    html, markdown = page.write_report([tmp_path / "runs"], tmp_path / "report")
    text = markdown.read_text()
    assert text.startswith(f"# {page.TRAINING_TITLE}") and "bootstrap" not in text
    figures = re.findall(r"figures/(\w+\.svg)", text)
    assert figures == ["training_notes_kl.svg", "training_notes_same_right.svg"]
    for name in figures:
        svg = (tmp_path / "report" / "figures" / name).read_text()
        assert "<!-- one -->" in svg and "<!-- two -->" in svg
    assert re.search(r"\| two +\| 2 +\| +2\.00, 0\.50 \|", text)
    assert "<svg" in html.read_text() or "data:image" in html.read_text()


def test_what_the_teacher_never_has_right_is_not_drawn(tmp_path):
    write(tmp_path / "runs", 1, {0: 3.0, 2: 1.0}, same_right=None)
    _, markdown = page.write_report([tmp_path / "runs"], tmp_path / "report")
    text = markdown.read_text()
    assert re.findall(r"figures/(\w+\.svg)", text) == ["training_notes_kl.svg"]
    assert "1.00, -" in text
