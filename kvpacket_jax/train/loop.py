"""The training loop: microbatches, updates, validations, checkpoints. All state is at this edge."""

import functools
import json
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import models
from kvpacket_jax import data
from kvpacket_jax.measure.machine import Machine, measure_machine
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter, join_trainable, split_trainable
from kvpacket_jax.packets.packet import read_primer
from kvpacket_jax.runtime import hosts, programs
from kvpacket_jax.runtime.signals import stop_requests
from kvpacket_jax.train import progress as progress_lib
from kvpacket_jax.train import setup
from kvpacket_jax.train import step as step_lib
from kvpacket_jax.train.batches import Taught, Teaching, Work
from kvpacket_jax.train.checkpoint import Checkpoints
from kvpacket_jax.train.log import Log
from kvpacket_jax.train.step import Sums
from kvpacket_jax.train.validation import Scores, Validation, worst
from models import LanguageModel, sharding
from models.kv_cache import KVCache


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
      The adapter that was written.

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
    checkpoints = Checkpoints(workdir / "checkpoints")
    run = prepare(config, workdir, checkpoints.metadata(), cache_dir, mesh, log)
    trainer = Trainer(run, checkpoints, log)
    with stop_requests() as stop:
        stopped = trainer.run(stop)
    if stopped:
        log(f"Stopped at step {trainer.step}; the same command goes on from there.")
        if stopped == signal.SIGINT:
            raise KeyboardInterrupt
    return trainer.adapter


class Run(NamedTuple):
    """What a run consists of, loaded and checked; nothing of it changes."""

    config: ConfigDict
    workdir: epath.Path
    model: LanguageModel
    teaching: Teaching
    schedule: object  # (entry, first example) of each microbatch
    validate: Validation
    optimizer: optax.GradientTransformation
    initial: Adapter
    primer_ids: jax.Array | None
    primer: KVCache | None
    description: dict  # JSON-able; saved with every checkpoint
    resumes: bool


def prepare(
    config: ConfigDict, workdir: epath.Path, saved: dict | None, cache_dir, mesh: str | None, log
) -> Run:
    """Loads and checks all that a run needs; `saved` describes the run that it goes on with."""
    config = setup.resolved(config, saved)
    log(f"Loading {config.model}")
    model = load_model(config, cache_dir, mesh)
    if model.config.mesh:
        sharding.log_layout(model.config, model.params, log)
    log("Reading the training examples")
    train_sets, template = setup.sources(config), data.TEMPLATES[config.template]
    # Of a run that goes on only the sizes matter: the adapter it began with may be gone.
    begun = ConfigDict(config.to_dict() | {"init": "untrained"}) if saved else config
    initial, primer_ids = split_trainable(setup.initial_adapter(begun, model))
    whole = join_trainable(initial, primer_ids)
    kinds = setup.validation_sources(config)
    preamble = max(
        _preamble_length(model, template, s[0]) for s in (*train_sets.values(), *kinds.values())
    )

    def teaching_of(sources, entries) -> Teaching:
        return Teaching(
            model,
            template,
            sources,
            {name: setup.shape_of(entry, preamble) for name, entry in entries},
            config.batch_size,
            initial.num_tokens,
            config.wrong_weight,
            config.seed,
        )

    teaching = teaching_of(train_sets, setup.entries(config))
    sets = {name: entry.sets for name, entry in setup.kinds(config)}
    validate = Validation(teaching_of(kinds, setup.kinds(config)), sets)
    description = {
        "model": model.fingerprint,
        "model_name": model.name,
        "config": config.to_dict(),
        "examples": setup.digest_of(train_sets),
        "primer": adapter_lib.fingerprint(whole) if not saved else saved["primer"],
        "baseline": (saved or {}).get("baseline"),
        "finish_from": (saved or {}).get("finish_from"),
    }
    primer = read_primer(model, adapter_lib.empty(model.config.dim)._replace(primer=primer_ids))
    return Run(
        config,
        workdir,
        model,
        teaching,
        setup.schedule(config, train_sets),
        validate,
        setup.make_optimizer(config),
        initial,
        primer_ids,
        primer,
        description,
        saved is not None,
    )


def load_model(config: ConfigDict, cache_dir, mesh: str | None) -> LanguageModel:
    """The frozen model, teacher and student in one."""
    if mesh is None and jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes train together on {jax.device_count()} devices: say "
            f"how, with --mesh=data:{jax.process_count()},model:{jax.local_device_count()} or "
            "another whose product is their number."
        )
    choices = setup.run_choices(config, jax.default_backend())
    model = models.load(config.model, config.dtype, cache_dir, mesh, **choices)
    model.check_tokenizer()
    sharding.examples_per_replica(model.config.mesh, config.batch_size)  # refuses what is uneven
    return model


def _preamble_length(model: LanguageModel, template, example) -> int:
    return len(data.encode_example(model.tokenizer, template, example).preamble)


class Trainer:
    """Takes the steps of a run: `step`, `validate` and `save`, and `run` that calls them.

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
        self._saved = self.step if run.resumes else -1
        self._add = {
            name: jit_microbatch(run.model, run.config.loss, entry.learning)
            for name, entry in setup.entries(run.config)
        }
        self._update = jit_update(run.model, run.optimizer, run.config)
        if run.config.finish and self._description["finish_from"] is None:
            self._description["finish_from"] = self.step

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
        return join_trainable(jax.device_get(self._state.mean), self._run.primer_ids)

    def run(self, stop: Callable[[], int]) -> int:
        """Steps to the end, or until `stop` gives the signal that asked to; that signal, or 0."""
        config = self._run.config
        self._announce()
        if self._description["baseline"] is None and not self._measure_baseline(stop):
            return self._end(stop())
        began = self.step
        shown = progress_lib.TrainingProgress(began, self.end, hosts.is_first())
        with shown:
            while self.step < self.end:
                if not self.take_step(stop, shown):
                    return self._end(stop())
                done = self.step
                last = done == self.end
                if last or done % config.validate_every == 0:
                    if not self.validate(stop, shown):
                        return self._end(stop())
                elif done % config.checkpoint_every == 0:
                    self.save({})
        self._finish()
        return 0

    # ---- one step

    def take_step(self, stop: Callable[[], int], shown: "progress_lib.TrainingProgress") -> bool:
        """One update from `config.microbatches` microbatches; False if told to stop."""
        began, count = time.perf_counter(), self._run.config.microbatches
        if hosts.share(np.bool_(bool(stop()))).any():
            return False
        first, sums, taught = self.step * count, step_lib.zero_sums(self._state.adapter), []
        with hosts.together():
            asked = self._ask(first)
            for i in range(count):
                # The next microbatch's teacher is queued before this one's student, so that its
                # answers are there when the host wants them.
                coming = self._ask(first + i + 1) if i + 1 < count else None
                microbatch = self._run.teaching.collect(asked)
                sums = self._learn(sums, microbatch)
                taught.append(microbatch._replace(batch=None, hidden=None))  # not held any longer
                asked = coming
            rates = setup.rates(self._run.config, self.step, self._description["finish_from"])
            self._state, metrics = self._update(self._state, sums, rates)
            metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
        seconds = time.perf_counter() - began
        work = Work(*map(sum, zip(*(t.work for t in taught), strict=True)))
        self._record(metrics, taught, work, seconds, shown)
        programs.give_back()
        return True

    def _ask(self, microbatch: int):
        return self._run.teaching.ask(*self._run.schedule[microbatch])

    def _learn(self, sums: Sums, taught: Taught) -> Sums:
        run = self._run
        return self._add[taught.entry](
            run.model.params, self._state.adapter, run.primer, sums, taught.batch, taught.hidden
        )

    def _record(self, metrics: dict, taught: list[Taught], work: Work, seconds, shown) -> None:
        if not np.isfinite([metrics["loss"], metrics["gradient_norm"]]).all():
            self._checkpoints.close()
            names = ", ".join(i for t in taught for i in t.ids)
            raise NotFinite(
                f"Step {self.step}: loss {metrics['loss']}, gradient norm "
                f"{metrics['gradient_norm']}, on {names}. The checkpoints in {self._run.workdir} "
                "are of steps before it. Try a smaller optimizer.writer_learning_rate and "
                "learning_rate, or optimizer.clip_norm=1, in another workdir."
            )
        row = {
            "step": self.step,
            "loss": metrics["loss"],
            "gradient_norm": metrics["gradient_norm"],
            "kl": metrics["kl"] / metrics["tokens"],
            "agree": metrics["agree"] / metrics["tokens"],
            "questions": metrics["questions"],
            "tokens": work.tokens,
            "computed": work.computed,
            "seconds": seconds,
        }
        self._metrics.write(row)
        shown.add(row)

    # ---- validation and saving

    def _measure_baseline(self, stop: Callable[[], int]) -> bool:
        """Scores the untrained adapter and what the run begins with; False if told to stop."""
        run, adapter = self._run, self._state.mean
        untrained = adapter  # which changes nothing yet, unless it was trained or has soft tokens
        if run.config.init != "untrained" or adapter.num_tokens:
            untrained = adapter_lib.empty(run.model.config.dim)._replace(primer=adapter.primer)
        self._log("Validating without training")
        baseline = run.validate(untrained, run.primer, stop)
        if not baseline:
            return False
        self._description["baseline"] = baseline
        self._log(progress_lib.scores_line(0, baseline))
        scores = baseline
        if untrained is not adapter:
            self._log("Validating what training begins with")
            scores = run.validate(adapter, run.primer, stop)
        if scores:
            self._metrics.validation(0, scores)
            self.save(scores)
        return bool(scores)

    def validate(self, stop: Callable[[], int], shown) -> Scores:
        """Scores the running mean and saves it with them; empty if told to stop."""
        scores = self._run.validate(self._state.mean, self._run.primer, stop)
        if scores:
            self._metrics.validation(self.step, scores)
            ratio, kind = worst(scores, self._description["baseline"])
            shown.say(f"{progress_lib.scores_line(self.step, scores)}; worst {ratio:.2f} ({kind})")
            self.save(scores)
        return scores

    def save(self, scores: Scores) -> None:
        """Writes a checkpoint, a candidate for the best if it has scores."""
        self._metrics.flush()
        programs.make_room()
        if self.step == self._saved and not scores:
            return
        measures = {}
        if scores:
            ratio, kind = worst(scores, self._description["baseline"])
            measures = {"worst": ratio, "kind": kind, "scores": scores}
        self._checkpoints.save(self.step, self._state, self._description, measures)
        self._saved = self.step
        if scores:
            self._write_best()

    def _end(self, signal_number: int) -> int:
        if self._description["baseline"] is not None:
            self.save({})
        self._checkpoints.close()
        return signal_number or signal.SIGTERM  # another host was told

    def _write_best(self) -> None:
        """Writes the best adapter so far: a run of unknown length may be stopped at any time."""
        best = self._checkpoints.best(self._state)
        adapter = join_trainable(jax.device_get(best.state.mean), self._run.primer_ids)
        described = {**self._description, "step": best.step, **best.measures}
        adapter_lib.save_adapter(
            self._run.workdir / "adapter", adapter, json.loads(json.dumps(described))
        )

    def _finish(self) -> None:
        best = self._checkpoints.best(self._state)
        self._checkpoints.close()
        if hosts.is_first():
            progress_lib.training_figure(self._metrics.path, self._run.workdir / "curves.png")
        self._log(
            f"Best at step {best.step}: worst kind {best.measures['kind']} at "
            f"{best.measures['worst']:.2f} of its untrained KL: {self._run.workdir / 'adapter'}"
        )

    # ---- what the run says of itself

    def _announce(self) -> None:
        run = self._run
        adapter = adapter_lib.describe(self.adapter)
        self._log(f"Step {self.step} of {self.end}: training {adapter}")
        with hosts.together():
            if self.step < self.end and hosts.is_first():
                machine = self._machine()
                self._log(progress_lib.forecast(run, self.end - self.step, machine))

    def _machine(self) -> Machine:
        mesh = self._run.model.config.mesh
        return measure_machine(self._run.model.dtype, mesh.size if mesh else 1)


def jit_microbatch(model: LanguageModel, loss: str, learning: int):
    """step.add_microbatch(params, adapter, primer, sums, batch, hidden), compiled for its mesh."""
    add = functools.partial(step_lib.add_microbatch, model.module, loss, learning)
    if (mesh := model.config.mesh) is None:
        return jax.jit(add, donate_argnums=3)
    whole, share = sharding.replicated(mesh), NamedSharding(mesh, PartitionSpec(sharding.DATA))
    params = sharding.param_shardings(model.config, model.params)
    inputs = (params, whole, None, whole, share, share)
    return jax.jit(add, donate_argnums=3, in_shardings=inputs, out_shardings=whole)


def jit_update(model: LanguageModel, optimizer, config: ConfigDict):
    """step.update(state, sums, rates) for this model, compiled where its mesh is."""
    update = functools.partial(step_lib.update, optimizer, config.reduction, config.mean_decay)
    if (mesh := model.config.mesh) is None:
        return jax.jit(update, donate_argnums=0)
    whole = sharding.replicated(mesh)
    return jax.jit(update, donate_argnums=0, out_shardings=(whole, whole))
