"""Two processes train together as one does: same adapter, one checkpoint, stops and resumes."""

import functools
import pathlib
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest

from tests.support.training import (
    STEPS,
    adapter,
    command,
    finish,
    run,
    saved_steps,
    start,
    steps_done,
)


def start_two(byte_model, *workdirs: pathlib.Path) -> list[subprocess.Popen]:
    """Two processes with two devices each; each holds a copy of the model."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    together = ["--mesh=data:2,model:2", "--distributed", "--num_processes=2"]
    together.append(f"--coordinator_address={address}")
    return [
        start([*command(byte_model, workdir), *together, f"--process_id={i}"], devices=2)
        for i, workdir in enumerate(workdirs)
    ]


def check_equal(workdir, trained) -> None:
    close = functools.partial(np.testing.assert_allclose, atol=1e-4)
    jax.tree.map(close, adapter(workdir), adapter(trained))


@pytest.mark.slow  # the next one is this with a stop in the middle
def test_two_processes_end_with_the_adapter_of_one(byte_model, trained, tmp_path):
    workdir = tmp_path / "run"
    first, second = finish(*start_two(byte_model, workdir, workdir))
    check_equal(workdir, trained)
    assert f"Best at step {STEPS}" in first
    assert "KL" not in second  # one tells of it, and one writes
    assert saved_steps(workdir) == saved_steps(trained)
    assert steps_done(workdir) == STEPS


def test_sigterm_on_one_saves_the_step_of_both_and_one_goes_on(byte_model, trained, tmp_path):
    workdir = tmp_path / "run"
    processes = start_two(byte_model, workdir, workdir)
    while all(p.poll() is None for p in processes) and steps_done(workdir) < 1:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    first, second = finish(*processes)
    stopped = max(saved_steps(workdir))
    assert f"Stopped at step {stopped}" in first
    assert "KL" not in second  # one tells of it, and one writes
    assert steps_done(workdir) == stopped < STEPS
    run(byte_model, workdir)  # alone, on one device
    check_equal(workdir, trained)


def test_a_workdir_that_is_not_shared_is_refused(byte_model, tmp_path):
    processes = start_two(byte_model, tmp_path / "mine", tmp_path / "yours")
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "host 1 of 2 cannot read" in errors
