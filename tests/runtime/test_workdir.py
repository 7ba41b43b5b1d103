"""A second process is refused while a first one works in a folder, and only then."""

import functools
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

    with workdir.locked(folder, workdir.EVALUATE):
        assert f"Another process is at work in {folder}. Wait" in second()
    assert "There is no model 'absent'" in second()  # refused for that alone


def test_a_process_that_was_killed_leaves_no_lock(tmp_path):
    code = (
        "import os; from kvpacket_jax.runtime import workdir\n"
        f"with workdir.locked({str(tmp_path)!r}, workdir.TRAIN): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
    locked = functools.partial(workdir.locked, tmp_path, workdir.TRAIN)
    with locked(), pytest.raises(RuntimeError), locked():
        pass


@pytest.mark.parametrize(
    ("program", "left", "message"),
    [
        ("evaluate", "checkpoints", "the workdir of a training run (launch.train left checkpoints"),
        ("train", "run.json", "the workdir of an evaluation (launch.evaluate left run.json"),
    ],
)
def test_a_workdir_of_another_program_is_refused_and_kept(tmp_path, program, left, message):
    (tmp_path / left).mkdir()
    command = [sys.executable, "-m", f"launch.{program}", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        message in done.stderr and f"choose another --workdir, {tmp_path / program}" in done.stderr
    )
    assert [p.name for p in tmp_path.iterdir()] == [left]
