"""A mistake in --config ends a program in one line that names what there is."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "--config=configs/cost.py:9b",
            "configs/cost.py knows no '9b'; it knows 8b, cpu, gpu, tpu.\n",
        ),
        ("--config=configs/kost.py", "There is no config file configs/kost.py.\n"),
        ("--config.tiar=host", "no such field of the config: 'tiar'\nDid you mean \"tier\""),
        ("--config.runs=x", "flag --config.runs=x: invalid literal for int"),
    ],
)
def test_a_mistake_is_named_without_a_traceback(given, message):
    command = [sys.executable, "-m", "launch.cost", given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [
        (
            "cost",
            ["--config=configs/cost.py:9b"],
            "configs/cost.py knows no '9b'; it knows 8b, cpu, gpu, tpu.\n",
        ),
        ("train", ["--workdir=w", "--config.num_step=1"], 'Did you mean "num_steps"'),
        ("plan", ["--config.num_step=1"], 'Did you mean "num_steps"'),
        ("evaluate", ["--workdir=w", "--config.modell=x"], 'Did you mean "model"'),
    ],
)
def test_programs_find_the_projects_configs_from_any_folder(program, flags, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"launch.{program}", *flags],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "train",
        "evaluate",
        "cost",
        "card",
        "sweep_lengths",
        "sweep_documents",
        "sweep_distractors",
        "sweep_compress",
        "sweep_parts",
        "sweep_primers",
    ],
)
def test_every_config_refuses_a_name_it_does_not_know(name):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from configs import {name} as c; c.get_config(); c.get_config('x')",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert f"ValueError: configs/{name}.py knows no 'x'; it knows " in done.stderr
