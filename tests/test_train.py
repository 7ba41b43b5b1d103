"""The loop: killed at any moment and started again, it ends with the same adapter, bit for bit."""

import json
import random
import re
import shutil
import signal
import subprocess
import time
import types

import byte_train
import ml_dtypes
import numpy as np
import pytest
from training import (
    ROOT,
    STEPS,
    adapter,
    command,
    options,
    run,
    saved_steps,
    start,
    steps_done,
    texts,
)

import models
from configs import train as config_lib
from kvpacket_jax import adapter as adapter_lib
from kvpacket_jax import train as train_lib
from kvpacket_jax.checkpoint import Checkpoints


def adapter_bytes(workdir) -> bytes:
    return b"".join(x.tobytes() for x in adapter(workdir))


def interrupt(byte_model, workdir, steps: int, how: signal.Signals) -> int:
    """Starts the run and sends it a signal when `steps` rows are written; its exit code."""
    process = start(command(byte_model, workdir), output=subprocess.DEVNULL)
    while process.poll() is None and steps_done(workdir) < steps:
        time.sleep(0.002)
    process.send_signal(how)
    return process.wait()


def killed_and_resumed(byte_model, workdir, trained, kills: int) -> None:
    rng = random.Random(kills)
    for _ in range(kills):
        interrupt(byte_model, workdir, rng.randint(1, STEPS - 2), signal.SIGKILL)
    printed = run(byte_model, workdir)
    assert re.search(r"[1-9]\d*(,\d+)* tokens/s.* \d+% of the matrix peak", printed), printed
    assert adapter_bytes(workdir) == adapter_bytes(trained)
    kept = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in kept if "loss" in row] == list(range(STEPS))


def test_killed_twice_ends_with_the_same_adapter(byte_model, trained, tmp_path):
    killed_and_resumed(byte_model, tmp_path / "run", trained, 2)


@pytest.mark.slow
def test_killed_twenty_times_ends_with_the_same_adapter(byte_model, trained, tmp_path):
    killed_and_resumed(byte_model, tmp_path / "run", trained, 20)


def test_sigterm_saves_the_step_it_reached(byte_model, trained, tmp_path):
    workdir = tmp_path / "run"
    assert interrupt(byte_model, workdir, 1, signal.SIGTERM) == 0
    assert max(saved_steps(workdir)) >= steps_done(workdir)


def test_sigterm_right_behind_a_validation_keeps_its_scores(byte_model, tmp_path, monkeypatch):
    config = byte_train.get_config(str(texts(byte_model)))
    config.update(options(byte_model) | {"validation_sets": 1})
    asked = iter([False] * 4 + [True])  # before each step
    monkeypatch.setattr(train_lib, "_on_sigterm", lambda: lambda: next(asked))
    state = train_lib.distill.init_state(
        train_lib.train(config, tmp_path / "run"), train_lib.make_optimizer(config, STEPS)
    )
    best = Checkpoints(tmp_path / "run" / "checkpoints").best(state)
    assert best.step == 4 and np.isfinite(best.metadata["kl"])


def test_what_a_run_begins_with_is_scored_and_not_needed_again(byte_model, trained, tmp_path):
    began, workdir = tmp_path / "began", tmp_path / "run"
    shutil.copytree(trained / "adapter", began)
    config = byte_train.get_config(str(texts(byte_model)))
    config.update(options(byte_model) | {"init": f"adapter:{began}", "num_steps": 2})
    config.optimizer.learning_rate = 10.0  # no step can be a better one
    best = train_lib.train(config, workdir)
    for found, expected in zip(best, adapter(trained), strict=True):
        np.testing.assert_array_equal(found, expected)
    first = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == -1 and np.isfinite(first["validation/kl"])
    shutil.rmtree(began)
    config.validate_every = 1
    for found, expected in zip(train_lib.train(config, workdir), best, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_run_is_not_resumed_with_other_settings(byte_model, trained):
    changed = [*command(byte_model, trained), "--config.seed=5", "--config.optimizer.b1=0.5"]
    done = subprocess.run(changed, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "other settings of optimizer, seed" in done.stderr


@pytest.mark.parametrize("field", ["hedder=3", "optimizer.rate=3", "header.x=3"])
def test_a_mistyped_field_is_named_without_a_traceback(byte_model, tmp_path, field):
    changed = [*command(byte_model, tmp_path), f"--config.{field}"]
    done = subprocess.run(changed, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    wrong = field.partition("=")[0].rpartition(".")[2]
    assert re.search(rf"no such field of the config: .*\b{wrong}\b", done.stderr)


def test_shipped_format_loads_and_checks_its_model(byte_model, trained):
    model = models.load(str(byte_model), "float32")
    loaded = adapter_lib.load_adapter(trained / "adapter", model)
    assert loaded.header.dtype == np.float32
    assert any(np.abs(np.asarray(x)).max() > 0 for x in loaded)


def test_training_begins_with_a_trained_adapter_and_more_tokens(byte_model, trained):
    model, config = models.load(str(byte_model), "float32"), config_lib.get_config()
    config.init, config.header = f"adapter:{trained / 'adapter'}", 9
    began = train_lib.initial_adapter(config, model)
    assert [len(x) for x in began] == [9, 8]
    for new, old in zip(began, adapter(trained), strict=True):
        np.testing.assert_array_equal(new[:8], old)
    assert np.abs(began.header[8]).max() > 0

    config.header = 7
    with pytest.raises(ValueError, match=r"header of 8 tokens.*set config.header=8 or more"):
        train_lib.initial_adapter(config, model)
    config.header = 0
    with pytest.raises(ValueError, match="header is 0 and trailer 8: each has one token or more"):
        train_lib.initial_adapter(config, model)
    config.header = 8
    for init in ("ones", "text:", "adapter:"):
        config.init = init
        with pytest.raises(ValueError, match="none of 'embeddings', 'text:…' and 'adapter:…'"):
            train_lib.initial_adapter(config, model)


def test_adapter_of_another_model_is_refused(tiny, trained, tmp_path):
    with pytest.raises(ValueError, match="32 numbers"):
        adapter_lib.load_adapter(trained / "adapter", tiny("tiny_qwen3"))
    with pytest.raises(FileNotFoundError, match="no adapter"):
        adapter_lib.load_adapter(tmp_path / "absent")


def test_the_teacher_has_weights_of_its_own_where_that_is_faster():
    def apart(dtype, platform, wanted=True):
        config = config_lib.get_config()
        config.second_copy = wanted
        return train_lib.second_copy(config, types.SimpleNamespace(dtype=np.dtype(dtype)), platform)

    assert apart(ml_dtypes.bfloat16, "cpu") and not apart(ml_dtypes.bfloat16, "cpu", wanted=False)
    assert not apart(np.float32, "cpu") and not apart(ml_dtypes.bfloat16, "tpu")


def test_decay_reaches_its_final_share():
    config = config_lib.get_config()
    for decay in train_lib.DECAYS:
        config.optimizer.decay = decay
        train_lib.make_optimizer(config, 100)
    config.optimizer.decay = "exponential"
    with pytest.raises(ValueError, match="cosine, linear, constant"):
        train_lib.make_optimizer(config, 100)


@pytest.mark.parametrize("field", ["loss", "reduction"])
def test_an_unknown_loss_or_reduction_is_refused_by_name(field):
    config = config_lib.get_config()
    config[field] = "median"
    with pytest.raises(ValueError, match=f"{field} 'median' is not one of"):
        train_lib.make_optimizer(config, 100)
