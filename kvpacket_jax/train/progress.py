"""What a training run shows: a progress bar while it runs, a figure of its curves at the end."""

import datetime
import io

import jax
import matplotlib
import numpy as np
from etils import epath

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from kvpacket_jax.measure.machine import Machine
from kvpacket_jax.runtime.format import number
from kvpacket_jax.runtime.progress import Bar
from kvpacket_jax.train import setup
from kvpacket_jax.train.log import read, scores_of
from kvpacket_jax.train.validation import Scores
from models.disk.files import write_whole

# Of the matrix peak, over a whole run: steps, validation, compiling. Measured on two CPU cores; a
# guess elsewhere.
EFFICIENCY = 0.35
MEAN = 30  # training steps that the figure's curve is a mean of: sets differ more than steps do
PASSES = 1 + 2  # of a microbatch, in forward passes: the teacher's, the student's and its backward
COLORS = plt.rcParams["axes.prop_cycle"].by_key()["color"]


def forecast(run, steps: int, machine: Machine) -> str:
    """How long `steps` more steps of a run.Run will take on `machine`, as a sentence.

    From the shapes of the mixture, the size of the layers and the matrix peak of all devices
    together; it is meant to be right within a factor of two.
    """
    layer_weights = sum(x.size for x in jax.tree.leaves(run.model.params["layers"]))
    teaching, chosen = run.teaching, setup.entries(run.config)
    total = sum(entry.weight for _, entry in chosen)
    tokens = sum(
        entry.weight / total * teaching.shapes[name].computed(teaching.soft_tokens)
        for name, entry in chosen
    )
    sets = steps * run.config.microbatches * run.config.batch_size
    passes = PASSES + run.model.config.remat
    seconds = sets * passes * 2 * layer_weights * tokens / (EFFICIENCY * machine.peak)
    duration = datetime.timedelta(minutes=round(seconds / 60))
    return (
        f"{steps} steps, {sets:,} sets of documents of about {tokens:,.0f} tokens: about "
        f"{duration} (h:m:s) on {machine.device}, {machine.threads} threads, {machine.dtype}, "
        f"{machine.peak / 1e12:.2f} TFLOP/s."
    )


def scores_line(step: int, scores: Scores) -> str:
    """The scores of a validation, as a line."""
    return f"step {step}: {kinds_line(scores)}"


def kinds_line(scores: Scores) -> str:
    """The scores of all kinds."""
    return "; ".join(
        f"{kind} KL {s['kl']:.2f} same {s['same']:.2f} ({number(s['same_right'])} where right)"
        for kind, s in scores.items()
    )


def measures_line(step: int, measures: dict) -> str:
    """The scores of a validation and the worst of them, as a line; measures as Best has them."""
    line = f"{scores_line(step, measures['scores'])}; worst {measures['worst']:.2f}"
    scale = measures["scale"]
    return f"{line} ({measures['kind']})" + (f", at {scale:g} of the change" * (scale != 1))


class TrainingProgress(Bar):
    """Follows the steps of a run, with loss, tokens per second and validations."""

    def __init__(self, start: int, total: int, shown: bool = True):
        super().__init__("training", total, start, f"{start}/{total}", shown)
        self._steps = total

    def add(self, row: dict) -> None:
        """Shows one step's row of metrics."""
        done, padding = row["step"], 1 - row["tokens"] / row["computed"]
        speed = row["tokens"] / row["seconds"]
        state = f"KL {row['kl']:.3f}  {speed:.0f} tokens/s  {padding:.0%} padding"
        self.update(done, f"{done}/{self._steps}  {state}")


def training_figure(log: epath.PathLike, path: epath.PathLike, baseline: Scores) -> None:
    """Draws the KL of a run's steps, and KL and agreement of each kind it was validated on.

    Args:
      baseline: scores without training, which KL is shown as a part of.
    """
    rows = read(log)
    steps = [r for r in rows if "kl" in r]
    checks = [(r["step"], scores) for r in rows if (scores := scores_of(r))]
    kinds = sorted({kind for _, scores in checks for kind in scores})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    at, kl = (np.array([r[key] for r in steps]) for key in ("step", "kl"))
    left.plot(at, kl, ".", ms=3, color="#CCCCCC", label="a training step")
    if len(kl) >= MEAN:
        means = np.convolve(kl, np.full(MEAN, 1 / MEAN), "valid")
        left.plot(at[MEAN - 1 :], means, label=f"mean of the last {MEAN}")
    left.set(xlabel="step", ylabel="KL to the teacher, nats a token", ylim=(0, None))
    left.legend(framealpha=0.9, edgecolor="none")
    for axes, key, label in (
        (middle, "kl", "validation KL ÷ KL without training"),
        (right, "same_right", "same answer as the teacher, where right"),
    ):
        for kind, color in zip(kinds, COLORS * len(kinds), strict=False):
            values = np.array([scores[kind][key] for _, scores in checks], float)  # None: NaN
            first = baseline[kind]["kl"] if key == "kl" else 1
            axes.plot([s for s, _ in checks], values / first, "o-", color=color, label=kind)
        axes.set(xlabel="step", ylabel=label, ylim=(0, None))
    right.legend(framealpha=0.9, edgecolor="none")
    png = io.BytesIO()  # matplotlib would take gs://… for a file here
    figure.savefig(png, format="png", dpi=120)
    plt.close(figure)
    write_whole(epath.Path(path), png.getvalue())
