"""The loop: killed at any moment and started again, it ends with the same adapter, bit for bit."""

import contextlib
import dataclasses
import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import time
import types

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import models
from configs import train as config_lib
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.train import loop as train_lib
from kvpacket_jax.train import loss as loss_lib
from kvpacket_jax.train import setup
from kvpacket_jax.train.checkpoint import Checkpoints
from tests.support import byte_train
from tests.support.training import (
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


@pytest.fixture(autouse=True, scope="module")
def programs(byte_model):
    """What one run of this process compiled, the next ones read; as those of their own do."""
    wanted = {
        "jax_compilation_cache_dir": str(byte_model.parent / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in wanted}

    def configure(values):
        compilation_cache.reset_cache()  # jax looks at these once
        for name, value in values.items():
            jax.config.update(name, value)

    configure(wanted)
    yield
    configure(before)


def adapter_bytes(workdir) -> bytes:
    return b"".join(x.tobytes() for x in adapter(workdir))


def interrupt(byte_model, workdir, more: int, how: signal.Signals) -> int:
    """Starts the run and sends it a signal `more` steps or so after it went on; its exit code."""
    log = workdir / "metrics.jsonl"
    before = log.stat().st_mtime_ns if log.exists() else 0
    process = start(command(byte_model, workdir), output=subprocess.DEVNULL)
    gone_on, limit = None, time.monotonic() + 300
    while process.poll() is None and (gone_on is None or steps_done(workdir) < gone_on + more):
        assert time.monotonic() < limit, "the run does not go on"
        if gone_on is None and log.exists() and log.stat().st_mtime_ns != before:
            gone_on = steps_done(workdir)  # it rewrites the log first
        time.sleep(0.002)
    process.send_signal(how)
    return process.wait()


def killed_and_resumed(byte_model, folder, trained, kills: int) -> None:
    """Kills in the midst of steps; a run that ends before its kill is checked, another begun."""
    rng, runs, landed = random.Random(kills), 0, 0
    while landed < kills:
        code = interrupt(byte_model, folder / f"{runs}", rng.randint(1, 3), signal.SIGKILL)
        landed += code == -signal.SIGKILL
        if code == 0:
            check_whole(folder / f"{runs}", trained)
            runs += 1
    workdir = folder / f"{runs}"
    printed = run(byte_model, workdir)
    assert re.search(r"[1-9]\d*(,\d+)* tokens/s.* \d+% of the matrix peak", printed), printed
    check_whole(workdir, trained)


def check_whole(workdir, trained) -> None:
    """Ends with the adapter of the run that was not killed, and logged each step once."""
    assert adapter_bytes(workdir) == adapter_bytes(trained)
    kept = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in kept if "loss" in row] == list(range(STEPS))


def test_killed_twice_ends_with_the_same_adapter(byte_model, trained, tmp_path):
    killed_and_resumed(byte_model, tmp_path, trained, 2)


@pytest.mark.slow
def test_killed_twenty_times_ends_with_the_same_adapter(byte_model, trained, tmp_path):
    killed_and_resumed(byte_model, tmp_path, trained, 20)


def test_sigterm_saves_the_step_it_reached(byte_model, trained, tmp_path):
    workdir = tmp_path / "run"
    assert interrupt(byte_model, workdir, 1, signal.SIGTERM) == 0
    assert max(saved_steps(workdir)) >= steps_done(workdir)


@pytest.fixture
def ctrl_c():
    """Ctrl-C as a terminal's programs have it; a shell's jobs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_saves_the_step_it_reached(byte_model, trained, tmp_path, monkeypatch, ctrl_c):
    workdir = tmp_path / "run"
    config = byte_train.get_config(str(texts(byte_model)))
    late = {"checkpoint_every": STEPS, "validate_every": STEPS}  # what is saved is Ctrl-C's
    config.update(options(byte_model) | late)
    presses = iter([ctrl_c])  # one
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        shown = train_lib.train_report.TrainingProgress
        patch.setattr(shown, "add", lambda *_: [press() for press in presses])
        train_lib.train(config, workdir)
    assert max(saved_steps(workdir)) == steps_done(workdir) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    config.update(options(byte_model))
    train_lib.train(config, workdir)
    check_whole(workdir, trained)


def test_a_second_ctrl_c_stops_at_once(ctrl_c):
    with train_lib._stop_asked() as stop:
        ctrl_c()
        assert stop() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()


def sigterm_after(monkeypatch, times: int) -> None:
    """The signal has come when it is asked for so often: before each step and validated set."""
    asked = itertools.chain([0] * times, itertools.repeat(signal.SIGTERM))
    stop = contextlib.nullcontext(lambda: next(asked))
    monkeypatch.setattr(train_lib, "_stop_asked", lambda: stop)


def validations(workdir) -> list[dict]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "validation/kl" in row]


def test_sigterm_in_a_validation_saves_and_the_resumed_run_validates(
    byte_model, trained, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    config = byte_train.get_config(str(texts(byte_model)))
    config.update(options(byte_model))
    with monkeypatch.context() as patch:
        sigterm_after(patch, 4 + 1)
        train_lib.train(config, workdir)
    assert max(saved_steps(workdir)) == 4 and not validations(workdir)
    train_lib.train(config, workdir)
    check_whole(workdir, trained)
    assert validations(workdir) == validations(trained)


def test_sigterm_right_behind_a_validation_keeps_its_scores(byte_model, tmp_path, monkeypatch):
    config = byte_train.get_config(str(texts(byte_model)))
    config.update(options(byte_model) | {"validation_sets": 1})
    sigterm_after(monkeypatch, 4 + 1)
    state = loss_lib.init_state(
        train_lib.train(config, tmp_path / "run"), setup.make_optimizer(config, STEPS)
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


def test_a_run_is_not_resumed_on_other_examples(byte_model, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    path = texts(byte_model)
    config = byte_train.get_config(str(path))
    config.update(options(byte_model))
    before = path.read_text()
    path.write_text("\n".join(before.splitlines()[:-1]))
    try:
        with pytest.raises(ValueError, match="other examples: a file of the mixture has been"):
            train_lib.train(config, workdir)
    finally:
        path.write_text(before)


def test_an_example_that_is_too_long_is_named_before_the_first_step(byte_model, tmp_path):
    config = byte_train.get_config(str(tmp_path / "it-{split}.jsonl"))
    config.update(options(byte_model))
    lines = texts(byte_model).read_text().splitlines()
    long = json.dumps(json.loads(lines[-1]) | {"id": "long", "documents": ["far " * 100_000]})
    for split, last in (("train", long), ("validation", lines[-1])):
        (tmp_path / f"it-{split}.jsonl").write_text("\n".join([*lines[:-1], last]))
    with pytest.raises(ValueError, match="Example long: "):
        train_lib.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


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
    began = setup.initial_adapter(config, model)
    assert [len(x) for x in began] == [9, 8]
    for new, old in zip(began, adapter(trained), strict=True):
        np.testing.assert_array_equal(new[:8], old)
    assert np.abs(began.header[8]).max() > 0

    config.header = 7
    with pytest.raises(ValueError, match=r"header of 8 tokens.*set config.header=8 or more"):
        setup.initial_adapter(config, model)

    config.init, config.header, config.trailer = "text:abc", 2, 3
    began = setup.initial_adapter(config, model)
    ids = model.tokenizer.encode("abc")
    table = np.asarray(model.params["embedding"])
    np.testing.assert_array_equal(np.concatenate(began), table[np.resize(ids, 5)])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("header", 0, "header is 0 and trailer 8: each has one token or more"),
        ("init", "ones", "none of 'embeddings', 'text:…' and 'adapter:…'"),
        ("init", "text:", "none of 'embeddings', 'text:…' and 'adapter:…'"),
        ("init", "adapter:", "none of 'embeddings', 'text:…' and 'adapter:…'"),
        ("template", "qwen", "template 'qwen' is not one of completion, chat"),
        ("loss", "mse", "loss 'mse' is not one of kl, cross_entropy"),
        ("reduction", "mean", "reduction 'mean' is not one of sum, mean_tokens, mean_questions"),
        ("optimizer.decay", "exponential", "is not one of cosine, linear, constant"),
        ("validate_every", 0, "validate_every is 0: it is 1 or more"),
        ("accumulate", 0, "accumulate is 0: it is 1 or more"),
        ("validation_sets", 0, "validation_sets is 0: it is 1 or more"),
        ("accumulate", 7, "num_steps is 480, not a multiple of accumulate, 7"),
    ],
)
def test_settings_are_refused_before_anything_is_loaded(tmp_path, field, value, message):
    config = config_lib.get_config()
    config.model = "no-such-model"
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        train_lib.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_adapter_of_another_model_is_refused(tiny, trained, tmp_path):
    with pytest.raises(ValueError, match="32 numbers"):
        adapter_lib.load_adapter(trained / "adapter", tiny("tiny_qwen3"))
    with pytest.raises(FileNotFoundError, match="no adapter"):
        adapter_lib.load_adapter(tmp_path / "absent")


def test_an_adapter_of_a_model_as_wide_is_taken_only_when_told(byte_model, trained):
    model = models.load(str(byte_model), "float32")
    other = dataclasses.replace(model, fingerprint="another")
    with pytest.raises(ValueError, match="trained for the model with fingerprint .*another"):
        adapter_lib.load_adapter(trained / "adapter", other)
    adapter_lib.load_adapter(trained / "adapter", other, other_model=True)
    config = config_lib.get_config()
    config.init = f"adapter:{trained / 'adapter'}"
    with pytest.raises(ValueError, match="--config.other_model"):
        setup.initial_adapter(config, other)
    config.other_model = True
    setup.initial_adapter(config, other)


def test_an_adapter_replaces_an_adapter_and_nothing_else(trained, tmp_path):
    shutil.copytree(trained / "adapter", tmp_path / "old")
    adapter_lib.save_adapter(tmp_path / "old", adapter(trained), {"model": None})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there and is no adapter"):
        adapter_lib.save_adapter(tmp_path / "notes", adapter(trained), {"model": None})
    assert (tmp_path / "notes" / "mine.txt").exists()


def test_the_teacher_has_weights_of_its_own_where_that_is_faster():
    def apart(dtype, platform, wanted=True):
        config = config_lib.get_config()
        config.second_copy = wanted
        return train_lib.second_copy(config, types.SimpleNamespace(dtype=np.dtype(dtype)), platform)

    assert apart(ml_dtypes.bfloat16, "cpu") and not apart(ml_dtypes.bfloat16, "cpu", wanted=False)
    assert not apart(np.float32, "cpu") and not apart(ml_dtypes.bfloat16, "tpu")


@pytest.mark.parametrize(
    ("decay", "middle", "last"),
    [("cosine", 0.5 + 0.05 / 2, 0.05), ("linear", 0.525, 0.05), ("constant", 1, 1)],
)
def test_the_rate_warms_up_and_decays_to_its_final_share(decay, middle, last):
    config = config_lib.get_config()
    config.optimizer.update({"decay": decay, "learning_rate": 2.0, "final": 0.05})
    rate = setup.learning_rate(config, 103)  # three of them warm up
    found = [float(rate(step)) for step in (0, 1, 2, 3, 53, 103)]
    np.testing.assert_allclose(found, 2 * np.array([1 / 4, 2 / 4, 3 / 4, 1, middle, last]), 1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(byte_model, tmp_path):
    config = byte_train.get_config(str(texts(byte_model)))
    config.update(options(byte_model) | {"checkpoint_every": 1})
    config.optimizer.learning_rate = float("inf")
    with pytest.raises(train_lib.NotFinite, match=r"Step 1: loss nan.* on line-\d+, line-\d+\."):
        train_lib.train(config, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == {1}


def test_a_file_without_splits_is_said_to_validate_itself(byte_model, tmp_path):
    said = []
    config = byte_train.get_config(str(texts(byte_model)))
    config.update(options(byte_model) | {"num_steps": 1})
    train_lib.train(config, tmp_path / "one", say=said.append)
    assert any(s.startswith("it: validation asks what training learns from") for s in said)
    assert (tmp_path / "one" / "curves.png").exists()
    for split in ("train", "validation"):
        lines = texts(byte_model).read_text().splitlines(keepends=True)
        (tmp_path / f"{split}.jsonl").write_text("".join(lines[:: -1 if split == "train" else 1]))
    config = byte_train.get_config(str(tmp_path / "{split}.jsonl"))
    config.update(options(byte_model) | {"num_steps": 1})
    said.clear()
    train_lib.train(config, tmp_path / "two", say=said.append)
    assert not any("validation asks" in s for s in said)
