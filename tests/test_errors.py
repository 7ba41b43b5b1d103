"""An error ends a program in its own words; --verbosity=1 shows where it came from."""

import pathlib
import subprocess
import sys

import pytest

from launch import errors

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("kind", errors.EXPECTED)
def test_an_error_ends_in_its_own_words(kind):
    with pytest.raises(SystemExit, match="the store is empty") as ended, errors.in_one_line():
        raise kind("the store is empty")
    assert ("--verbosity=1" in str(ended.value)) == (kind is TypeError)


def test_ctrl_c_ends_with_its_status():
    with pytest.raises(SystemExit) as ended, errors.in_one_line():
        raise KeyboardInterrupt
    assert ended.value.code == 130


@pytest.mark.parametrize("shown", [True, False])
def test_verbosity_shows_where(shown):
    flags = ["--verbosity=1"] if shown else []
    command = [sys.executable, "-m", "launch.demo", "--model=absent/absent.gguf", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "absent.gguf" in done.stderr
    assert ("Traceback" in done.stderr) == shown
