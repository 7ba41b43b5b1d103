"""A second process is refused while a first one works in a folder, and only then."""

import pathlib
import subprocess
import sys

import pytest

from kvpacket_jax.runtime import workdir

ROOT = pathlib.Path(__file__).parents[2]


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    folder = tmp_path / "new" / "run"
    command = [sys.executable, "-m", "launch.evaluate", f"--workdir={folder}"]
    command += ["--config.model=absent"]

    def second() -> str:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        return done.stderr

    with workdir.locked(folder):
        assert f"Another process is at work in {folder}. Wait" in second()
    assert "There is no model 'absent'" in second()  # refused for that alone


def test_a_process_that_was_killed_leaves_no_lock(tmp_path):
    code = (
        "import os; from kvpacket_jax.runtime import workdir\n"
        f"with workdir.locked({str(tmp_path)!r}): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
    with workdir.locked(tmp_path), pytest.raises(RuntimeError), workdir.locked(tmp_path):
        pass
