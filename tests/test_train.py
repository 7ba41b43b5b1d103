"""The loop: killed at any moment and started again, it ends with the same adapter, bit for bit."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

import models
from configs import train as config_lib
from kvpacket_jax import adapter as adapter_lib
from kvpacket_jax import train as train_lib
from models import config as model_config
from models import transformer, weights

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A random model of a few thousand parameters that reads bytes."""
    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    hf = {
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(hf))
    config = model_config.from_hf(hf)
    params = transformer.init_params(config, jax.random.key(1))
    tensors = {}
    for path, value in jax.tree_util.tree_flatten_with_path(params)[0]:
        (name,), _ = weights._tensor_names(config, path)
        shape = weights._hf_shape(name, value.shape)
        kernel = name.endswith("_proj.weight")
        array = np.asarray(value).reshape(shape[::-1]).T if kernel else np.asarray(value)
        tensors[name] = np.ascontiguousarray(array.reshape(shape))
    save_file(tensors, folder / "model.safetensors")
    return folder


def command(folder: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    options = {
        "model": folder,
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
        f"--compilation_cache_dir={workdir.parent / 'programs'}",
    ]


def run(folder, workdir) -> None:
    done = subprocess.run(command(folder, workdir), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def adapter_bytes(workdir) -> bytes:
    adapter = adapter_lib.load_adapter(workdir / "adapter")
    return b"".join(np.asarray(x).tobytes() for x in adapter)


def steps_done(workdir) -> int:
    path = workdir / "metrics.jsonl"
    return sum('"loss"' in row for row in path.read_text().splitlines()) if path.exists() else 0


def interrupt(folder, workdir, steps: int, how: signal.Signals) -> int:
    """Starts the run and sends it a signal when `steps` rows are written; its exit code."""
    process = subprocess.Popen(
        command(folder, workdir), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and steps_done(workdir) < steps:
        time.sleep(0.002)
    process.send_signal(how)
    return process.wait()


@pytest.fixture(scope="module")
def reference(folder, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("reference") / "run"
    run(folder, workdir)
    return workdir


def killed_and_resumed(folder, workdir, reference, kills: int) -> None:
    rng = random.Random(kills)
    for _ in range(kills):
        interrupt(folder, workdir, rng.randint(1, STEPS - 2), signal.SIGKILL)
    run(folder, workdir)
    assert adapter_bytes(workdir) == adapter_bytes(reference)
    kept = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in kept if "loss" in row] == list(range(STEPS))


def test_killed_twice_ends_with_the_same_adapter(folder, reference, tmp_path):
    killed_and_resumed(folder, tmp_path / "run", reference, 2)


@pytest.mark.slow
def test_killed_twenty_times_ends_with_the_same_adapter(folder, reference, tmp_path):
    killed_and_resumed(folder, tmp_path / "run", reference, 20)


def test_sigterm_saves_the_step_it_reached(folder, reference, tmp_path):
    workdir = tmp_path / "run"
    assert interrupt(folder, workdir, 1, signal.SIGTERM) == 0
    saved = {int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()}
    assert max(saved) >= steps_done(workdir)


def test_a_run_is_not_resumed_with_other_settings(folder, reference):
    changed = [*command(folder, reference), "--config.seed=5", "--config.optimizer.b1=0.5"]
    done = subprocess.run(changed, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "other settings of optimizer, seed" in done.stderr


def test_shipped_format_loads_and_checks_its_model(folder, reference):
    model = models.load(str(folder), "float32")
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
