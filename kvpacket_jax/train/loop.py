"""The training loop: microbatches, updates, validations, checkpoints. All state is at this edge."""

import functools
import signal
import time
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import models
from kvpacket_jax.measure.machine import Machine, measure_machine
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter, join_trainable
from kvpacket_jax.runtime import hosts, programs, resume
from kvpacket_jax.runtime.signals import stop_requests
from kvpacket_jax.train import progress as progress_lib
from kvpacket_jax.train import setup
from kvpacket_jax.train import step as step_lib
from kvpacket_jax.train.batches import Microbatch, Texts, Work
from kvpacket_jax.train.checkpoint import Best, Checkpoints
from kvpacket_jax.train.log import Log
from kvpacket_jax.train.run import Run, prepare
from kvpacket_jax.train.step import Sums, TrainState
from kvpacket_jax.train.validation import Scores, Variant, worst
from models import LanguageModel, sharding

CURVES = "curves.png"
READ_AHEAD = grain.ReadOptions(num_threads=4, prefetch_buffer_size=12)  # microbatches


class NotFinite(RuntimeError):
    """The loss or a gradient became NaN or infinite; the checkpoints are of steps before it."""


def train(
    config: ConfigDict, workdir: str, cache_dir=None, mesh: str | None = None, log=print
) -> Adapter:
    """Trains an adapter and writes it to `workdir`/adapter; goes on where a stopped run ended.

    The examples of a step are a function of the seed and the step alone, so a run that was killed
    ends with the same adapter bit for bit (on a CPU). The adapter is the running mean at the
    validated step whose worst kind is best.

    Args:
      workdir: a folder that all hosts see, or gs://bucket/path.
      mesh: as models.load takes it; one device if None.
      log: prints a line.

    Returns:
      The best adapter, as it was written; the latest one of a run that was stopped.

    Raises:
      ValueError, FileNotFoundError: for settings, before the first step.
      NotFinite: names the examples; the checkpoints are of steps before it.
      KeyboardInterrupt: after a Ctrl-C, when the step is saved.
    """
    setup.check(config)
    models.check_reads_text(config.model)
    log = log if hosts.is_first() else lambda *_: None
    workdir = hosts.absolute(workdir)
    hosts.check_shared(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir / "checkpoints", log)
    run = prepare(config, workdir, checkpoints.metadata(), cache_dir, mesh, log)
    trainer = Trainer(run, checkpoints, log)
    if trainer.step < trainer.end and hosts.is_first():
        (workdir / CURVES).unlink(missing_ok=True)  # it says that a run is over
    with stop_requests() as stop:
        stopped = trainer.run(stop)
    if stopped:
        log(f"Stopped at step {trainer.step}; the same command goes on from there.")
        if stopped == signal.SIGINT:
            raise KeyboardInterrupt
        return trainer.adapter
    return trainer.finish()


class Trainer:
    """A run under way: `take_step`, `validate` and `save`, `run` that calls them, `finish`.

    Step numbers are of updates done, in the log, in checkpoints and in figures.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints, log: Callable[[str], None]):
        self._run, self._checkpoints, self._log = run, checkpoints, log
        self._description = dict(run.description)
        state = step_lib.init_state(run.initial, run.optimizer)
        if mesh := run.model.config.mesh:
            whole = functools.partial(sharding.put, sharding.replicated(mesh))
            state = jax.tree.map(lambda x: whole(np.asarray(x)), state)
        self._state = checkpoints.restore(state, self._description)
        self._metrics = Log(run.workdir / "metrics.jsonl", self.step)
        # The steps that were last saved, and validated.
        self._saved = self.step if run.saved else -1
        self._scored = self.step if run.saved and run.saved["measures"] else -1
        learning = {name: entry.learning for name, entry in setup.entries(run.config)}
        programs_by_learning = {
            n: jit_microbatch(run.model, run.config, n) for n in set(learning.values())
        }
        self._add = {name: programs_by_learning[n] for name, n in learning.items()}
        self._update = jit_update(run.model, run.optimizer, run.config)
        if not run.config.finish and self._description["finish_from"] is not None:
            log(
                f"The rates had begun to fall at step {self._description['finish_from']}; without "
                "--config.finish they are whole again."
            )
            self._description["finish_from"] = None
        if run.config.finish and self._description["finish_from"] is None:
            self._description["finish_from"] = self.step
        self._texts = self._pending = None  # the microbatches to come

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self._state.step)

    @property
    def end(self) -> int:
        """Updates after which the run is over."""
        start = self._description["finish_from"]
        return self._run.config.num_steps if start is None else start + self._run.config.finish

    @property
    def adapter(self) -> Adapter:
        """The running mean, with its primer."""
        return self._whole(self._state)

    def _whole(self, state: TrainState, scale: float = 1.0) -> Adapter:
        mean = jax.device_get(adapter_lib.rounded(adapter_lib.scaled(state.mean, scale)))
        return join_trainable(mean, self._run.primer_ids)

    def run(self, stop: Callable[[], int]) -> int:
        """Steps to the end, or until `stop` returns a signal; returns that signal, or 0."""
        config = self._run.config
        self._announce()
        if self.step < self.end:
            self._compile()
        if self._description["baseline"] is None and not self._measure_baseline(stop):
            return self._end(stop())
        with progress_lib.TrainingProgress(self.step, self.end, hosts.is_first()) as shown:
            while True:
                over = self.step >= self.end
                regular = over or self.step % config.validate_every == 0
                if regular and self.step != self._scored:  # a stop may have come before
                    if not self.validate(stop, shown):
                        return self._end(stop())
                elif self.step % config.checkpoint_every == 0:
                    self.save({})
                if over:
                    break
                if not self.take_step(stop, shown):
                    return self._end(stop())
        return 0

    def _compile(self) -> None:
        """Compiles all programs on a single GPU, by running each of them; nothing of it is kept."""
        teaching, validate = self._run.teaching, self._run.validate
        learning = {name: entry.learning for name, entry in setup.entries(self._run.config)}
        entries = {(s, learning[name]): name for name, s in teaching.shapes.items()}.values()
        kinds = {s: name for name, s in validate.teaching.shapes.items()}.values()
        sums = step_lib.zero_sums(self._state.adapter)
        microbatches = programs.side_by_side(
            functools.partial(teaching.teach, name, 0) for name in entries
        )
        programs.side_by_side(
            [functools.partial(self._learn, sums, m) for m in microbatches]
            + [
                functools.partial(validate.score, k, 0, self._variant(self._state.mean))
                for k in kinds
            ]
        )

    # ---- one step

    def take_step(self, stop: Callable[[], int], shown: "progress_lib.TrainingProgress") -> bool:
        """One update from `config.microbatches` microbatches; False if asked to stop."""
        began, config = time.perf_counter(), self._run.config
        if hosts.share(np.bool_(bool(stop()))).any():
            return False
        sums, done = step_lib.zero_sums(self._state.adapter), []
        with hosts.together():
            if self._texts is None:
                self._texts = self._read_ahead(self.step * config.microbatches)
                self._pending = self._run.teaching.ask(next(self._texts))
            for _ in range(config.microbatches):
                # The next microbatch's teacher is queued before this one's student, so that its
                # answers are there when the host wants them.
                following = self._run.teaching.ask(next(self._texts))
                microbatch = self._run.teaching.collect(self._pending)
                sums = self._learn(sums, microbatch)
                done.append((microbatch.examples, microbatch.work))
                self._pending = following
            left = setup.steps_left(config, self.step, self._description["finish_from"])
            rates = setup.rates(config, self.step, left)
            self._state, metrics = self._update(self._state, sums, rates)
            metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
        seconds = time.perf_counter() - began
        examples = [x.id for microbatch, _ in done for x in microbatch]
        work = Work(*map(sum, zip(*(work for _, work in done), strict=True)))
        self._record(metrics, examples, work, seconds, shown)
        programs.give_back()
        return True

    def _read_ahead(self, first: int) -> Iterator[Texts]:
        """The microbatches from number `first` on, read and tokenised by threads ahead of time."""
        read = self._run.schedule.slice(slice(first, None)).map(
            lambda where: self._run.teaching.read(*where)
        )
        return iter(read.to_iter_dataset(READ_AHEAD))

    def _learn(self, sums: Sums, microbatch: Microbatch) -> Sums:
        params, primer = self._run.model.params, self._run.primer
        return self._add[microbatch.entry](
            params, self._state.adapter, primer, sums, microbatch.batch, microbatch.hidden
        )

    def _record(
        self, metrics: dict, examples: list[str], work: Work, seconds: float, shown
    ) -> None:
        if not np.isfinite([metrics["loss"], metrics["gradient_norm"]]).all():
            self._checkpoints.close()
            names = ", ".join(examples)
            raise NotFinite(
                f"Step {self.step + 1}: loss {metrics['loss']}, gradient norm "
                f"{metrics['gradient_norm']}, on {names}. The checkpoints in {self._run.workdir} "
                "are of steps before it. Try a smaller optimizer.writer_learning_rate and "
                "learning_rate, or optimizer.clip_norm=1, in another workdir."
            )
        row = {
            "step": self.step,
            "loss": metrics["loss"],
            "gradient_norm": metrics["gradient_norm"],
            "kl": metrics["kl"] / max(metrics["tokens"], 1),
            "agree": metrics["agree"] / max(metrics["tokens"], 1),
            "sets": self._run.config.microbatches * self._run.config.batch_size,
            "questions": metrics["questions"],
            "tokens": work.tokens,
            "computed": work.computed,
            "seconds": seconds,
        }
        self._metrics.write(row)
        shown.add(row)

    # ---- validation and saving

    def _measure_baseline(self, stop: Callable[[], int]) -> bool:
        """Scores packets without training, which other scores are divided by; False if stopped."""
        run, adapter = self._run, self._state.mean
        untrained = adapter  # changes nothing yet, unless trained, with soft tokens or a distiller
        changes = adapter.num_tokens or adapter.distiller is not None
        if run.config.init != "untrained" or changes:
            writer = adapter_lib.scaled(adapter, 0.0).writer  # so that one program scores both
            kept = {"primer": adapter.primer, "writer": writer}
            untrained = adapter_lib.empty(run.model.config.dim)._replace(**kept)
        self._log("Validating without training")
        baseline = run.validate(self._variant(untrained), stop)
        if not baseline:
            return False
        self._description["baseline"] = baseline
        self._log(progress_lib.scores_line(0, baseline))
        if untrained is adapter:
            self._metrics.validation(0, baseline)
            self.save(self._measures(baseline))
        return True

    def validate(self, stop: Callable[[], int], shown) -> bool:
        """Scores the running mean at every scale and saves it with the best; False if stopped."""
        measures = []
        has_writer = self._state.mean.writer is not None
        for scale in self._run.config.scales if has_writer else (1.0,):
            mean = adapter_lib.rounded(adapter_lib.scaled(self._state.mean, scale))  # as saved
            if not (scores := self._run.validate(self._variant(mean), stop)):
                return False
            measures.append(self._measures(scores, scale))
            shown.say(progress_lib.measures_line(self.step, measures[-1]))
        best = min(measures, key=lambda m: m["worst"])
        self._metrics.validation(self.step, best["scores"])
        self.save(best)
        return True

    def _variant(self, adapter: Adapter) -> Variant:
        """As `validation.variants` has them: bare packets have no opening."""
        is_bare = adapter_lib.is_bare(join_trainable(adapter, self._run.primer_ids))
        return Variant(adapter, self._run.primer, self._run.config.opening and not is_bare)

    def _measures(self, scores: Scores, scale: float = 1.0) -> dict:
        """What a checkpoint is compared by, as checkpoint.Best has it."""
        ratio, kind = worst(scores, self._description["baseline"])
        return {"worst": ratio, "kind": kind, "scale": scale, "scores": scores}

    def save(self, measures: dict) -> None:
        """Writes a checkpoint, a candidate for the best if it has measures."""
        self._metrics.flush()
        programs.make_room()
        if self.step == self._saved and not measures:
            return
        self._checkpoints.save(self.step, self._state, self._description, measures)
        self._saved = self.step
        if measures:
            self._scored = self.step
            self._write_best()

    def _end(self, signal_number: int) -> int:
        if self._description["baseline"] is not None:
            self.save({})
        self._checkpoints.close()
        return signal_number or signal.SIGTERM  # the signal was another host's

    def _write_best(self) -> Best:
        """Writes the best adapter so far: a run of unknown length may be stopped at any time.

        One that is there already stays, with the card that may have been measured of it.
        """
        best, path = self._checkpoints.best(self._state), self._run.workdir / "adapter"
        described = {**self._description, "step": best.step, **best.measures}
        adapter = self._whole(best.state, best.measures["scale"])
        if not adapter_lib.is_saved(path, adapter):
            adapter_lib.save_adapter(path, adapter, resume.as_json(described))
        return best

    def finish(self) -> Adapter:
        """The best adapter, written again if the run was killed while it was."""
        best = self._write_best()
        self._checkpoints.close()
        if hosts.is_first():
            progress_lib.training_figure(
                self._metrics.path,
                self._run.workdir / CURVES,
                self._description["baseline"],
            )
        self._log(
            f"Best at step {best.step}: worst kind {best.measures['kind']} at "
            f"{best.measures['worst']:.2f} of its KL without training: "
            f"{self._run.workdir / 'adapter'}"
        )
        return self._whole(best.state, best.measures["scale"])

    # ---- what is printed before the first step

    def _announce(self) -> None:
        run = self._run
        adapter = adapter_lib.describe(self.adapter)
        self._log(f"Step {self.step} of {self.end}: training {adapter}")
        with hosts.together():
            if self.step < self.end and hosts.is_first():
                self._log(progress_lib.forecast(run, self.end - self.step, self._machine()))

    def _machine(self) -> Machine:
        mesh = self._run.model.config.mesh
        return measure_machine(self._run.model.dtype, mesh.size if mesh else 1)


# Nothing is donated: an adapter is small, and its empty parts may share one buffer.


def jit_microbatch(model: LanguageModel, config: ConfigDict, learning: int):
    """step.add_microbatch(params, adapter, primer, sums, batch, hidden), compiled for its mesh."""
    clip_norm = config.optimizer.clip_norm
    settings = (config.loss, learning, config.reduction, clip_norm, config.learn_writer)
    settings = (*settings, config.opening)
    if (mesh := model.config.mesh) is None:
        return _jit_microbatch(model.module, *settings)
    whole, share = sharding.replicated(mesh), NamedSharding(mesh, PartitionSpec(sharding.DATA))
    weights = sharding.param_shardings(model.config, model.params)
    inputs = (weights, whole, None, whole, share, share)
    return jax.jit(_microbatch(model.module, *settings), in_shardings=inputs, out_shardings=whole)


@functools.cache  # runs of one process share it
def _jit_microbatch(module, *settings):
    return jax.jit(_microbatch(module, *settings))


def _microbatch(module, loss, learning, reduction, clip_norm, learn_writer, opening):
    add = functools.partial(step_lib.add_microbatch, module, loss, learning, reduction=reduction)
    return functools.partial(add, clip_norm=clip_norm, learn_writer=learn_writer, opening=opening)


def jit_update(model: LanguageModel, optimizer, config: ConfigDict):
    """step.update(state, sums, rates) for this model, compiled where its mesh is."""
    update = functools.partial(step_lib.update, optimizer, config.reduction, config.mean_decay)
    if (mesh := model.config.mesh) is None:
        return jax.jit(update)
    whole = sharding.replicated(mesh)
    return jax.jit(update, out_shardings=(whole, whole))
