"""The loop: killed at any moment and started again, it ends with the same adapter, bit for bit."""

import contextlib
import itertools
import re
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.train import checkpoint, setup
from kvpacket_jax.train import log as log_lib
from kvpacket_jax.train import loop as train_lib
from tests.support import byte_train
from tests.support.training import (
    ROOT,
    STEPS,
    adapter,
    check_equal,
    command,
    config_of,
    options,
    run,
    saved_steps,
    start,
    steps_done,
    texts,
    train,
)


def adapter_bytes(workdir) -> bytes:
    return b"".join(x.tobytes() for x in jax.tree.leaves(adapter(workdir)))


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
    runs, landed = 0, 0
    while landed < kills:
        code = interrupt(byte_model, folder / f"{runs}", 3 - landed % 3, signal.SIGKILL)
        landed += code == -signal.SIGKILL
        if code == 0:
            check_whole(folder / f"{runs}", trained)
            runs += 1
    workdir = folder / f"{runs}"
    printed = run(byte_model, workdir)
    assert re.search(rf"Step \d of {STEPS}: training 8 \+ 8 soft tokens, a writer", printed), (
        printed
    )
    assert re.search(r"Best at step \d: worst kind it at \d+\.\d\d of its", printed), printed
    check_whole(workdir, trained)


def check_whole(workdir, trained) -> None:
    """Ends with the adapter of the run that was not killed, and logged each step once."""
    assert adapter_bytes(workdir) == adapter_bytes(trained)
    rows = log_lib.read(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    assert validations(rows) == validations(log_lib.read(trained / "metrics.jsonl"))


def validations(rows: list[dict]) -> list[dict]:
    return [row for row in rows if "validation/it/kl" in row]


def test_the_log_counts_updates(trained):
    rows = log_lib.read(trained / "metrics.jsonl")
    assert [row["step"] for row in validations(rows)] == [0, 4, STEPS]
    assert saved_steps(trained) == {6, STEPS}
    assert (trained / "curves.png").exists()


def test_killed_twice_ends_with_the_same_adapter(byte_model, trained, tmp_path):
    killed_and_resumed(byte_model, tmp_path, trained, 2)


@pytest.mark.slow
def test_killed_twenty_times_ends_with_the_same_adapter(byte_model, trained, tmp_path):
    killed_and_resumed(byte_model, tmp_path, trained, 20)


@pytest.mark.slow  # tests/train/test_hosts.py sends it to one of two
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
    presses = iter([ctrl_c])  # one
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        shown = train_lib.progress_lib.TrainingProgress
        patch.setattr(shown, "add", lambda *_: [press() for press in presses])
        # What is saved after the start is Ctrl-C's.
        train(config_of(byte_model, checkpoint_every=STEPS, validate_every=STEPS), workdir)
    assert max(saved_steps(workdir)) == steps_done(workdir) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(config_of(byte_model), workdir)
    check_whole(workdir, trained)


def test_no_program_is_compiled_again_for_what_was_saved(byte_model, tmp_path, monkeypatch):
    """Orbax commits what it reads to a device, and XLA's programs are made for that."""
    made, original = [], train_lib.jit_microbatch

    def noted(*arguments):
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(train_lib, "jit_microbatch", noted)
    short = dict(checkpoint_every=2, validate_every=2, microbatches=2)
    train(config_of(byte_model, num_steps=2, **short), tmp_path / "a")
    number = sum(f._cache_size() for f in set(made))
    train(config_of(byte_model, num_steps=4, **short), tmp_path / "a")  # goes on
    begun = f"adapter:{tmp_path / 'a' / 'adapter'}"
    train(config_of(byte_model, num_steps=2, init=begun, **short), tmp_path / "b")
    assert number and sum(f._cache_size() for f in set(made)) == number


def test_a_second_ctrl_c_stops_at_once(ctrl_c):
    with train_lib.stop_requests() as stop:
        ctrl_c()
        assert stop() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()


def sigterm_after(monkeypatch, times: int) -> None:
    """The signal has come when it is asked for so often: before each step and validated set."""
    answers = itertools.chain([0] * times, itertools.repeat(signal.SIGTERM))
    stop = contextlib.nullcontext(lambda: next(answers))
    monkeypatch.setattr(train_lib, "stop_requests", lambda: stop)


@pytest.mark.parametrize(
    ("times", "reached"),
    [
        (0, None),  # the baseline, which nothing is saved without
        (1, 0),  # what training begins with
        (2 + 4, 4),
        (2 + 4 + 1 + 4, STEPS),  # the last
    ],
)
def test_sigterm_in_a_validation_saves_and_the_resumed_run_validates(
    byte_model, trained, tmp_path, monkeypatch, times, reached
):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        sigterm_after(patch, times)
        train(config_of(byte_model), workdir)
    if reached is None:
        assert not saved_steps(workdir)
    else:
        assert max(saved_steps(workdir)) == reached
    before = validations(log_lib.read(workdir / "metrics.jsonl"))
    assert [row["step"] for row in before] == list(range(0, reached or 0, 4))
    train(config_of(byte_model), workdir)
    check_whole(workdir, trained)


def test_sigterm_right_after_a_validation_keeps_its_scores(byte_model, tmp_path, monkeypatch):
    sigterm_after(monkeypatch, 2 + 4 + 1)
    train(config_of(byte_model), tmp_path / "run")
    assert max(saved_steps(tmp_path / "run")) == 4
    measures = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints").metadata()["measures"]
    assert measures["kind"] == "it" and np.isfinite(measures["scores"]["it"]["kl"])


def test_what_a_run_begins_with_is_scored_and_not_needed_again(byte_model, trained, tmp_path):
    began, workdir = tmp_path / "began", tmp_path / "run"
    shutil.copytree(trained / "adapter", began)
    config = config_of(byte_model, init=f"adapter:{began}", num_steps=2)
    # No step can be a better one.
    config.optimizer.learning_rate = config.optimizer.writer_learning_rate = 10.0
    best = train(config, workdir)
    check_equal(best, adapter(trained))
    first = log_lib.read(workdir / "metrics.jsonl")[0]
    assert first["step"] == 0 and np.isfinite(first["validation/it/kl"])
    shutil.rmtree(began)
    config.validate_every = 1
    check_equal(train(config, workdir), best)
    check_equal(adapter(workdir), best)


def test_the_adapter_is_written_again_where_a_kill_prevented_it(byte_model, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "adapter")
    train(config_of(byte_model), workdir)
    check_whole(workdir, trained)


def test_a_card_of_the_adapter_stays_when_the_run_is_called_again(byte_model, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    card = workdir / "adapter" / "card.json"
    card.write_text("measured for hours")
    train(config_of(byte_model), workdir)
    assert card.read_text() == "measured for hours"


def test_the_adapter_is_the_running_mean_of_the_best_step(byte_model, trained):
    description = adapter_lib.ocp.metadata(trained / "adapter").custom_metadata
    rows = validations(log_lib.read(trained / "metrics.jsonl"))
    best = min(rows, key=lambda row: row["validation/it/kl"])
    assert description["step"] == best["step"] == STEPS
    ratio = best["validation/it/kl"] / description["baseline"]["it"]["kl"]
    assert description["worst"] == pytest.approx(ratio)
    config = config_of(byte_model)
    model = train_lib.models.load(str(byte_model), "float32")
    like = train_lib.step_lib.init_state(
        setup.initial_adapter(config, model), setup.make_optimizer(config)
    )
    state = checkpoint.Checkpoints(trained / "checkpoints").best(like).state
    assert int(state.step) == STEPS
    check_equal(adapter(trained), jax.device_get(adapter_lib.rounded(state.mean)))
    assert np.abs(state.mean.header - state.adapter.header).max() > 1e-4


def test_the_adapter_is_saved_at_the_scale_that_validates_best(byte_model, tmp_path, monkeypatch):
    measured, line = [], train_lib.progress_lib.measures_line
    monkeypatch.setattr(
        train_lib.progress_lib, "measures_line", lambda *a: measured.append(a[1]) or line(*a)
    )
    config = config_of(byte_model, num_steps=4)
    config.scales = (0.5, 1.0, 4.0)
    train(config, tmp_path / "run")
    assert [m["scale"] for m in measured] == [0.5, 1.0, 4.0] * 2  # before the first step too
    best = min(measured[3:], key=lambda m: m["worst"])
    described = adapter_lib.ocp.metadata(tmp_path / "run" / "adapter").custom_metadata
    assert described["step"] == 4 and described["scale"] == best["scale"]
    row = validations(log_lib.read(tmp_path / "run" / "metrics.jsonl"))[-1]
    assert row["validation/it/kl"] == pytest.approx(best["scores"]["it"]["kl"])
    config.scales = (1.0,)
    train(config, tmp_path / "whole")
    saved, whole = (adapter(tmp_path / name).writer["q"] for name in ("run", "whole"))
    np.testing.assert_allclose(saved.b, best["scale"] * whole.b, rtol=2.0**-7)
    np.testing.assert_array_equal(saved.a, whole.a)


def rates_of(monkeypatch) -> list[float]:
    """The learning rates of the steps that follow, as they are used."""
    used, known = [], setup.rates

    def rates(*arguments):
        used.append(known(*arguments).tokens)
        return known(*arguments)

    monkeypatch.setattr(setup, "rates", rates)
    return used


def test_rates_fall_to_nothing_from_where_the_run_is(byte_model, tmp_path, monkeypatch):
    """Also after a stop in the midst of it."""
    used, whole, stopped = rates_of(monkeypatch), tmp_path / "whole", tmp_path / "stopped"
    config = config_of(byte_model, num_steps=2)
    config.optimizer.warmup_steps = 0
    train(config, whole)
    shutil.copytree(whole, stopped)
    config.finish = 4
    train(config, whole)
    rate = config.optimizer.learning_rate
    np.testing.assert_allclose(used, [rate, rate, rate, 0.75 * rate, 0.5 * rate, 0.25 * rate])
    with monkeypatch.context() as patch:
        sigterm_after(patch, 4)
        train(config, stopped)
    assert max(saved_steps(stopped)) == 5
    train(config, stopped)
    assert used[6:] == used[2:6]
    assert adapter_bytes(stopped) == adapter_bytes(whole)
    assert steps_done(stopped) == steps_done(whole) == 6
    # Without it the run goes on as before.
    del used[:]
    config.finish, config.num_steps = 0, 7
    train(config, whole)
    np.testing.assert_allclose(used, [rate])


def test_more_steps_are_those_of_a_longer_run(byte_model, trained, tmp_path):
    workdir = tmp_path / "run"
    train(config_of(byte_model, num_steps=STEPS // 2), workdir)
    assert steps_done(workdir) == STEPS // 2
    train(config_of(byte_model), workdir)
    check_whole(workdir, trained)


def test_a_run_is_not_resumed_with_other_settings(byte_model, trained):
    changed = [*command(byte_model, trained), "--config.seed=5", "--config.optimizer.b1=0.5"]
    done = subprocess.run(changed, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "other settings: optimizer.b1 0.9, not 0.5; seed 0, not 5." in done.stderr


def test_a_run_is_not_resumed_on_other_examples(byte_model, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    path = texts(byte_model)
    config = config_of(byte_model)
    before = path.read_text()
    path.write_text("\n".join(before.splitlines()[:-1]))
    try:
        with pytest.raises(ValueError, match="other examples: a data set of the mixture has"):
            train(config, workdir)
        # Elsewhere, and as they were: the run goes on.
        moved = path.with_name("moved.jsonl")
        moved.write_text(before)
        elsewhere = byte_train.get_config(str(moved))
        elsewhere.update(options(byte_model))
        train(elsewhere, workdir)
    finally:
        path.write_text(before)


def test_sizes_beyond_the_models_context_are_refused_before_the_first_step(byte_model, tmp_path):
    config = config_of(byte_model)
    config.mixture.it.tokens = 4096
    with pytest.raises(ValueError, match=r"entry it, .*: The request spans \d+ positions"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_examples(byte_model, tmp_path):
    config = config_of(byte_model, checkpoint_every=1, best_first=0.0)  # whole examples
    config.optimizer.learning_rate = float("inf")
    four = r"line-\d+, line-\d+, line-\d+, line-\d+\."
    with pytest.raises(train_lib.NotFinite, match=rf"Step 2: loss nan.* on {four}"):
        train(config, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == {0, 1}
