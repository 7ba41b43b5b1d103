"""Pieces of the documentation below some folders."""

import gzip
import pathlib
import random
import subprocess
import sys

import pytest

from kvpacket_jax.data.own import installed_docs
from kvpacket_jax.data.own.installed_docs import (
    KINDS,
    VARIED,
    WORDS,
    cut,
    is_prose,
    kind_of,
    plain,
)

SENTENCE = "The {} of the harbour is open to all of its visitors in the morning"


def text(name: str, sentences: int = 40) -> str:
    return ". ".join(SENTENCE.format(f"{name} {i}") for i in range(sentences)) + ".\n"


@pytest.fixture
def folder(tmp_path):
    """One file of each kind, and some that are no documentation."""
    files = {
        "pier-1.0.dist-info/METADATA": f"Name: pier\nVersion: 1.0\n\n# Pier\n\n{text('pier')}",
        "pier/crane.py": f'def lift(tons: int = 3):\n    """{text("crane")}"""\n',
        "pier/_hidden.py": f'def hide():\n    """{text("cellar")}"""\n',
        "pier/tests/guide.md": text("test"),
        "pier/guide.md": text("guide"),
        "pier/copy.md": text("guide"),
        "pier/data.csv": text("table"),
        "pier/CHANGELOG.md": text("change"),
        "pier/LICENSE": text("licence"),
        "man1/pier.1.gz": f'.TH PIER 1\n.SH "NAME"\n{text("page")}',
        "de/man1/pier.1.gz": text("Seite"),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    (tmp_path / "pier/broken.md").write_bytes(b"\xff\xfe" + text("broken").encode())
    return tmp_path


def test_pieces_are_of_all_kinds_in_turn_and_always_the_same(folder):
    pieces = installed_docs.collect([folder], 100, seed=0)
    assert pieces == installed_docs.collect([folder], 100, seed=0)
    assert pieces != installed_docs.collect([folder], 100, seed=1)
    assert [p["id"].split("/")[0] for p in pieces[: len(KINDS)]] == list(KINDS)
    assert len({p["id"] for p in pieces}) == len({p["text"] for p in pieces}) == len(pieces)
    for few in (1, 2, 5):
        assert len(installed_docs.collect([folder], few, seed=0)) == few < len(pieces)
    for piece in pieces:
        body = piece["text"].partition("\n")[2]
        assert WORDS[0] <= len(body.split()) <= WORDS[1] and body.endswith(".")
    everything = " ".join(p["text"] for p in pieces)
    assert not any(w in everything for w in ("cellar", "test 1", "table", "Seite", "broken"))
    titles = {p["text"].partition("\n")[0] for p in pieces}
    assert {"pier 1.0", "pier.crane: lift(tons: int=3)", "pier(1)", "pier: LICENSE"} <= titles


def test_pieces_are_of_the_kinds_that_are_asked_for(folder, tmp_path):
    pieces = installed_docs.collect([folder], 100, seed=0, kinds=("description",))
    assert {p["id"].split("/")[0] for p in pieces} == {"description"} and pieces
    command = [sys.executable, "-m", "launch.collect_docs", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True).stdout
    assert f"<{'|'.join(KINDS)}>" in "".join(shown.split())


def test_no_file_and_no_package_has_too_many_pieces(folder, monkeypatch):
    (folder / "pier/long.md").write_text(text("long", 2000))
    pieces = installed_docs.collect([folder], 100, seed=0)
    assert sum("/long.md-" in p["id"] for p in pieces) == VARIED.per_file
    monkeypatch.setattr(installed_docs, "VARIED", VARIED._replace(per_package=3))
    pieces = installed_docs.collect([folder], 100, seed=0)
    assert sum(p["id"].split("/")[1] == "pier" for p in pieces) == 3


def test_everything_of_a_folder_can_be_had(folder):
    long = text("long", 2000)
    (folder / "pier/long.md").write_text(long)
    pieces = installed_docs.collect([folder], 1000, seed=0, everything=True)
    words = sum(len(p["text"].split()) - 2 for p in pieces if "/long.md-" in p["id"])
    # All but what is too short to be a piece, between two of them or at the end.
    assert 0.98 * len(long.split()) < words <= len(long.split())
    few = installed_docs.collect([folder], 100, seed=0, everything=True)
    of_text = sum(p["id"].startswith("text/") for p in few)
    assert len(few) == 100 and of_text > 2 * 100 / len(KINDS)  # which is a kind's share otherwise


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        installed_docs.collect([tmp_path / "nowhere"], 10, seed=0)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("numpy-2.0.dist-info/METADATA", "description"),
        ("numpy/linalg.py", "code"),
        ("numpy/_core.py", None),
        ("git/README.md", "text"),
        ("git/RelNotes/1.7.txt.gz", "text"),
        ("numpy-2.0.dist-info/top_level.txt", None),
        ("man8/mount.8.gz", "manual"),
        ("man3/open.3pm.gz", "manual"),
        ("fr/man8/mount.8.gz", None),
        ("zlib1g/changelog.Debian.gz", "changelog"),
        ("zlib1g/copyright", "licence"),
        ("numpy/COPYING.txt", "licence"),
    ],
)
def test_kinds_go_by_the_path(path, kind):
    assert kind_of(pathlib.Path(path)) == kind


def test_markup_is_taken_away():
    source = (
        "# Pier\n\n[![build](https://x/b.svg)](https://x) <img src='a.png'>\n\n"
        "See the [map](https://x/map) and `the plan <https://x/plan>`_ or :func:`~pier.lift`.\n"
        "=====\n\n.. image:: a.png\n   :width: 3\n\n.. note::\n   Use ``lift`` **now**, <name>.\n"
    )
    words = " ".join(plain(source).split())
    assert words == "Pier See the map and the plan or pier.lift. Use `lift` now, <name>."


def test_a_manual_page_is_read_without_its_macros():
    page = (
        '.\\" by hand\n.TH PIER 1\n.SH "NAME"\npier \\- a \\fBlanding\\fR\nstage\n.SH OPTIONS\n'
        '.TP\n.BR \\-\\-tons " number"\nof \\(lqload\\(rq\n.PP\nLast.\n.nf\nlift 3\nlift 4\n.fi\n'
    )
    assert installed_docs.roff(page) == (
        'NAME\n\npier - a landing stage\n\nOPTIONS\n\n--tons number of "load"\n\nLast.\n\n'
        "lift 3\nlift 4"
    )
    assert installed_docs.roff(".Dd today\n.Nm pier\n") == ""


def test_pieces_end_with_a_paragraph_or_a_sentence():
    parts = [("Title", "\n\n".join(text(f"part {i}", 12).strip() for i in range(9)))]
    pieces = list(cut(parts, random.Random(0)))
    assert len(pieces) > 2
    assert all(p.startswith("Title\nThe ") and p.endswith("morning.") for p in pieces)


@pytest.mark.parametrize(
    "bad",
    [
        "| a | b |\n|---|---|\n" * 20,
        "See https://x.org/a and https://x.org/b of the list. " * 6,
        "3 14 159 2653 58979 323846 26433832 the of and " * 6,
        "Die Fähre nach Aldmoor fährt um neun Uhr ab und ist rot. " * 6,
        "import numpy; print(numpy) " * 12,
    ],
)
def test_what_is_no_prose_is_left_out(bad):
    assert is_prose(text("pier")) and not is_prose(bad)
