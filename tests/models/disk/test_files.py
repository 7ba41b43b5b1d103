"""Files are whole or not there, and nothing is left beside them."""

import os
import pathlib
import re
import resource
import signal

import pytest

import models
from models.disk import files


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    files.write_whole(path, "old")

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        files.write_whole(path, "new")
    assert path.read_text() == "old" and os.listdir(path.parent) == ["file"]


def test_a_full_disk_leaves_nothing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError):
            files.write_whole(tmp_path / "file", "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def test_bytes_and_names_are_on_the_disk_before_and_after(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(files, "sync", lambda path: done.append(path))
    files.write_whole(tmp_path / "a" / "b" / "file", b"x")
    assert done[:2] == [tmp_path, tmp_path / "a"]  # of the folders that were made
    assert done[2].name.endswith(".partial") and done[3] == tmp_path / "a" / "b"


def test_a_line_after_one_that_was_cut_begins_anew(tmp_path):
    path = tmp_path / "lines"
    files.append_line(path, "one")
    with path.open("a") as file:
        file.write("tw")
    files.append_line(path, "three")
    files.append_line(path, "four")
    assert path.read_text().split("\n") == ["one", "tw", "three", "four", ""]


def test_models_are_written_by_the_one_writer():
    folder = pathlib.Path(models.__file__).parent
    around = r"\.write_(text|bytes)\(|os\.(rename|replace)\(|\.replace\([a-z]+\)|tok\w*\.save\("
    found = {p.name for p in folder.rglob("*.py") if re.search(around, p.read_text("utf-8"))}
    assert found == {"files.py"}
