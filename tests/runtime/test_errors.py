"""An error ends a program in its own words; --traceback shows where it came from."""

import pathlib
import subprocess
import sys

import pytest
from absl import flags

from launch.common import errors, folders

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def parsed():
    flags.FLAGS.mark_as_parsed()
    yield
    flags.FLAGS.unparse_flags()


@pytest.mark.parametrize("kind", errors.EXPECTED)
def test_an_error_ends_in_its_own_words(kind):
    with pytest.raises(SystemExit, match="the store is empty") as ended, errors.in_one_line():
        raise kind("the store is empty")
    assert ("--traceback" in str(ended.value)) == (kind is TypeError)


def test_ctrl_c_ends_with_its_status():
    with pytest.raises(SystemExit) as ended, errors.in_one_line():
        raise KeyboardInterrupt
    assert ended.value.code == 130


@pytest.mark.parametrize("shown", [True, False])
def test_the_flag_shows_where(shown):
    given = ["--traceback"] if shown else []
    command = [sys.executable, "-m", "launch.demo", "--model=absent/absent.gguf", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "absent.gguf" in done.stderr
    assert ("Traceback" in done.stderr) == shown


def test_folders_and_files_that_cannot_be_meant_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folders.local("workdir", "~/runs") == tmp_path / "runs"
    with pytest.raises(ValueError, match="--workdir= names no folder: is a variable not set"):
        folders.local("workdir", "")
    with pytest.raises(ValueError, match="--store=gs://a/b: only launch.train writes to object"):
        folders.local("store", "gs://a/b")
    for file in (None, str(tmp_path / "new.json")):
        folders.check_file("json", file)
    for folder in ("", "~", str(tmp_path)):
        with pytest.raises(ValueError, match=f"--json={folder} is a folder: give a file"):
            folders.check_file("json", folder)
    folders.check_file("figure", "cost.SVG", ".svg")
    with pytest.raises(ValueError, match="--figure=cost.png: name a file that ends in .svg"):
        folders.check_file("figure", "cost.png", ".svg")
