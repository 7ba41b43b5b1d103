"""What a training run shows: a progress bar while it runs, a figure of its curves at the end."""

import datetime
import io
import json
from collections.abc import Sequence

import jax
import matplotlib
import numpy as np
from etils import epath

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from kvpacket_jax.data import EncodedExample
from kvpacket_jax.measure.machine import Machine
from kvpacket_jax.runtime.progress import Bar
from models import LanguageModel

# Of the matrix peak, over a whole run: steps, the teacher, validation, compiling. Measured on two
# CPU cores; a guess elsewhere.
EFFICIENCY = 0.3
MEAN = 30  # training steps that the figure's curve is a mean of: sets differ more than steps do
PASSES = 4  # the teacher's, then the student's forward, forward again (remat) and backward


def forecast(
    model: LanguageModel, examples: Sequence[EncodedExample], total: int, machine: Machine
) -> str:
    """How long training on `total` examples will take on `machine`, as a sentence.

    `examples` are the first of them. From the tokens in them, the size of the layers and
    the matrix peak of all devices together; it is meant to be right within a factor of two.
    """
    weights = sum(x.size for x in jax.tree.leaves(model.params["layers"]))
    tokens = np.mean([sum(map(len, [e.preamble, *e.documents, *e.questions])) for e in examples])
    seconds = total * PASSES * 2 * weights * tokens / (EFFICIENCY * machine.peak)
    return (
        f"{total} sets of documents of about {tokens:,.0f} tokens: about "
        f"{datetime.timedelta(minutes=round(seconds / 60))} (h:m:s) on {machine.device}, "
        f"{machine.threads} threads, {machine.dtype}, {machine.peak / 1e12:.2f} TFLOP/s; and a few "
        "minutes of compiling."
    )


def speed(log: epath.PathLike, start: int, flops_per_token: float, machine: Machine) -> str:
    """What the median step from `start` on reached, its teacher's time included, as a sentence.

    Args:
      flops_per_token: of the last step, for each token with padding; the teacher's not counted.
    """
    steps = [r for r in read_rows(log) if "loss" in r and r["step"] >= start]
    tokens, computed = (
        np.median([r[key] / r["seconds"] for r in steps]) for key in ("tokens", "computed")
    )
    return (
        f"{tokens:,.0f} tokens/s, the median of {len(steps)} steps with their teacher's time; its "
        f"own FLOPs are {computed * flops_per_token / machine.peak:.0%} of the matrix peak."
    )


class TrainingProgress(Bar):
    """Follows the steps of a run, with loss, tokens per second and validations."""

    def __init__(self, start: int, total: int, shown: bool = True):
        super().__init__("training", total, start, f"{start}/{total}", shown)
        self._steps = total

    def add(self, row: dict) -> None:
        """Shows one step's row of metrics."""
        done, padding = row["step"] + 1, 1 - row["tokens"] / row["computed"]
        speed = row["tokens"] / row["seconds"]
        state = f"KL {row['kl']:.3f}  {speed:.0f} tokens/s  {padding:.0%} padding"
        self.update(done, f"{done}/{self._steps}  {state}")

    def validated(self, step: int, scores: dict) -> None:
        """Shows a validation's scores."""
        text = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self.say(f"step {step}: validation {text}")


def read_rows(path: epath.PathLike) -> list[dict]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in epath.Path(path).read_text().splitlines()]


def training_figure(log: epath.PathLike, path: epath.PathLike) -> None:
    """Draws KL, agreement and F1 over the steps of a run."""
    rows = read_rows(log)
    steps = [r for r in rows if "kl" in r]
    checks = [r for r in rows if "validation/kl" in r]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    at, kl = map(np.array, _curve(steps, "kl"))
    left.plot(at, kl, ".", ms=3, color="#CCCCCC", label="a training step")
    if len(kl) >= MEAN:
        means = np.convolve(kl, np.full(MEAN, 1 / MEAN), "valid")
        left.plot(at[MEAN - 1 :], means, label=f"mean of the last {MEAN}")
    left.plot(*_curve(checks, "validation/kl"), "o-", label="validation")
    left.set(xlabel="step", ylabel="KL to the teacher, nats a token", ylim=(0, None))
    left.legend(framealpha=0.9, edgecolor="none")
    for key, label in (("f1", "F1"), ("agree", "same answer as the teacher")):
        right.plot(*_curve(checks, f"validation/{key}"), "o-", label=label)
    right.set(xlabel="step", ylabel="share of questions", ylim=(0, 1))
    right.legend(frameon=False)
    png = io.BytesIO()  # matplotlib would take gs://… for a file here
    figure.savefig(png, format="png", dpi=120)
    plt.close(figure)
    epath.Path(path).write_bytes(png.getvalue())


def _curve(rows: list[dict], key: str):
    return [r["step"] + 1 for r in rows], [r[key] for r in rows]
