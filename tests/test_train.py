"""The loop: killed at any moment and started again, it ends with the same adapter, bit for bit."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import models
from configs import train as config_lib
from kvpacket_jax import adapter as adapter_lib
from kvpacket_jax import train as train_lib

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 8


def command(byte_model: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    options = {
        "model": byte_model,
        "dtype": "float32",
        "template": "completion",
        "num_steps": STEPS,
        "checkpoint_every": 2,
        "validate_every": 4,
        "validation_sets": 1,
        "new_tokens": 4,
        **{f"mixture.{name}.weight": 0 for name in config_lib.get_config().mixture},
        "mixture.biography_short.weight": 1,
        "mixture.biography_short.options.num_documents": 2,
        "mixture.biography_short.options.num_questions": 2,
    }
    return [
        *(sys.executable, "-m", "launch.train", "--config=configs/train.py"),
        *(f"--config.{k}={v}" for k, v in options.items()),
        f"--workdir={workdir}",
        f"--compilation_cache_dir={byte_model.parent / 'programs'}",  # one for all runs
    ]


def run(byte_model, workdir) -> None:
    done = subprocess.run(command(byte_model, workdir), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def adapter_bytes(workdir) -> bytes:
    adapter = adapter_lib.load_adapter(workdir / "adapter")
    return b"".join(np.asarray(x).tobytes() for x in adapter)


def steps_done(workdir) -> int:
    path = workdir / "metrics.jsonl"
    return sum('"loss"' in row for row in path.read_text().splitlines()) if path.exists() else 0


def interrupt(byte_model, workdir, steps: int, how: signal.Signals) -> int:
    """Starts the run and sends it a signal when `steps` rows are written; its exit code."""
    process = subprocess.Popen(
        command(byte_model, workdir), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and steps_done(workdir) < steps:
        time.sleep(0.002)
    process.send_signal(how)
    return process.wait()


@pytest.fixture(scope="module")
def reference(byte_model, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("reference") / "run"
    run(byte_model, workdir)
    return workdir


def killed_and_resumed(byte_model, workdir, reference, kills: int) -> None:
    rng = random.Random(kills)
    for _ in range(kills):
        interrupt(byte_model, workdir, rng.randint(1, STEPS - 2), signal.SIGKILL)
    run(byte_model, workdir)
    assert adapter_bytes(workdir) == adapter_bytes(reference)
    kept = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in kept if "loss" in row] == list(range(STEPS))


def test_killed_twice_ends_with_the_same_adapter(byte_model, reference, tmp_path):
    killed_and_resumed(byte_model, tmp_path / "run", reference, 2)


@pytest.mark.slow
def test_killed_twenty_times_ends_with_the_same_adapter(byte_model, reference, tmp_path):
    killed_and_resumed(byte_model, tmp_path / "run", reference, 20)


def test_sigterm_saves_the_step_it_reached(byte_model, reference, tmp_path):
    workdir = tmp_path / "run"
    assert interrupt(byte_model, workdir, 1, signal.SIGTERM) == 0
    saved = {int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()}
    assert max(saved) >= steps_done(workdir)


def test_a_run_is_not_resumed_with_other_settings(byte_model, reference):
    changed = [*command(byte_model, reference), "--config.seed=5", "--config.optimizer.b1=0.5"]
    done = subprocess.run(changed, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "other settings of optimizer, seed" in done.stderr


def test_shipped_format_loads_and_checks_its_model(byte_model, reference):
    model = models.load(str(byte_model), "float32")
    adapter = adapter_lib.load_adapter(reference / "adapter", model)
    assert adapter.header.dtype == np.float32
    assert any(np.abs(np.asarray(x)).max() > 0 for x in adapter)


def test_adapter_of_another_model_is_refused(tiny, reference, tmp_path):
    with pytest.raises(ValueError, match="32 numbers"):
        adapter_lib.load_adapter(reference / "adapter", tiny("tiny_qwen3"))
    with pytest.raises(FileNotFoundError, match="no adapter"):
        adapter_lib.load_adapter(tmp_path / "absent")


def test_decay_reaches_its_final_share():
    config = config_lib.get_config()
    for decay in train_lib.DECAYS:
        config.optimizer.decay = decay
        train_lib.make_optimizer(config, 100)
    config.optimizer.decay = "exponential"
    with pytest.raises(ValueError, match="cosine, linear, constant"):
        train_lib.make_optimizer(config, 100)
