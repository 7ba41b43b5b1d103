"""Short runs of launch.train, as processes, for the tests that stop, kill and distribute them."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
from ml_collections import ConfigDict

from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.train import loop
from tests.support import byte_train

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 8


def texts(byte_model: pathlib.Path) -> pathlib.Path:
    path = byte_model.parent / "texts.jsonl"
    if not path.exists():
        byte_train.write(path)
    return path


def options(byte_model: pathlib.Path) -> dict:
    """Fields of the config."""
    return {
        "model": str(byte_model),
        "dtype": "float32",
        "num_steps": STEPS,
        "batch_size": 2,
        "microbatches": 2,
        "checkpoint_every": 2,
        "validate_every": 4,
    }


def command(byte_model: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    config = f"--config=tests/support/byte_train.py:{texts(byte_model)}"
    return [
        *(sys.executable, "-m", "launch.train", config),
        *(f"--config.{k}={v}" for k, v in options(byte_model).items()),
        f"--workdir={workdir}",
    ]


def start(command: list[str], devices: int = 8, output=subprocess.PIPE) -> subprocess.Popen:
    """A process that sees so many devices; by default those of the tests, for their programs."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=output, stderr=output
    )


def finish(*processes: subprocess.Popen) -> list[str]:
    """What each printed; all must end well."""
    ends = [process.communicate(timeout=300) for process in processes]
    failed = [
        errors[-3000:]
        for process, (_, errors) in zip(processes, ends, strict=True)
        if process.returncode
    ]
    assert not failed, failed
    return [printed for printed, _ in ends]


def run(byte_model: pathlib.Path, workdir: pathlib.Path) -> str:
    """Trains to the end; what was printed."""
    return finish(start(command(byte_model, workdir)))[0]


def adapter(workdir: pathlib.Path) -> Adapter:
    return jax.tree.map(np.asarray, adapter_lib.load_adapter(workdir / "adapter"))


def steps_done(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    return sum('"loss"' in row for row in path.read_text().splitlines()) if path.exists() else 0


def saved_steps(workdir: pathlib.Path) -> set[int]:
    return {int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()}


def config_of(byte_model, **changes) -> ConfigDict:
    config = byte_train.get_config(str(texts(byte_model)))
    config.update(options(byte_model) | changes)
    return config


def train(config, workdir, **arguments):
    """In this process."""
    return loop.train(config, workdir, log=lambda _: None, **arguments)


def check_equal(tree, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, tree, expected)
