"""The training loop: data, steps, checkpoints, validation. All state is at this edge."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import models
from kvpacket_jax import data, teacher
from kvpacket_jax.data import Example
from kvpacket_jax.data.mixture import mixture
from kvpacket_jax.measure.flops import count_flops
from kvpacket_jax.measure.machine import measure_machine
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.runtime import hosts, programs
from kvpacket_jax.train import loss as loss_lib
from kvpacket_jax.train import progress as train_progress
from kvpacket_jax.train import setup
from kvpacket_jax.train.batches import Batches
from kvpacket_jax.train.checkpoint import Checkpoints
from kvpacket_jax.train.validation import Validation
from models import LanguageModel, identity, sharding
from models.files import write_whole

BEFORE = -1  # the step in the log of what was before the first
SAMPLE = 20  # examples that the forecast of a run's time looks at


class NotFinite(RuntimeError):
    """The loss or a gradient became NaN or infinite; the checkpoints are of steps before it."""


def train(
    config: ConfigDict, workdir: str, cache_dir=None, mesh: str | None = None, say=print
) -> Adapter:
    """Trains an adapter and writes it to `workdir`/adapter; goes on where a stopped run ended.

    The example of a step is a function of the seed and the step alone, and the teacher's lessons
    are kept on disk, so a run that was killed ends with the same adapter bit for bit (on a CPU).

    Args:
      workdir: a folder that all hosts see, or gs://bucket/path.
      mesh: as models.load takes it; one device if None.

    Returns:
      The best adapter by validation KL; the newest after SIGTERM.

    Raises:
      ValueError, FileNotFoundError: for settings, before the first step.
      NotFinite: names the batch; the checkpoints are of steps before it.
      KeyboardInterrupt: after a Ctrl-C, when the step is saved.
    """
    setup.check(config)
    models.check_reads_text(config.model)
    say = say if hosts.is_first() else lambda *_: None
    workdir = hosts.absolute(workdir)
    hosts.check_shared(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    say(f"Loading {config.model}")
    checkpoints = Checkpoints(workdir / "checkpoints")
    saved = checkpoints.metadata()
    config = setup.resolved(config, saved)
    model, readers = load_models(config, cache_dir, mesh, say)
    train_sets = setup.sources(config, "train")
    weights = [entry.weight for _, entry in setup.entries(config)]
    examples = mixture(list(train_sets.values()), weights, config.seed)
    held_out = setup.sources(config, "validation")
    for name in train_sets:
        if train_sets[name][0] == held_out[name][0]:
            say(
                f"{name}: validation asks what training learns from. For a set of its own put "
                "{split} into the file's name: mine-{split}.jsonl is mine-train.jsonl and "
                "mine-validation.jsonl."
            )
    template = data.TEMPLATES[config.template]
    reader = next(iter(readers.values()))
    encode = functools.partial(
        teacher.encode,
        reader,
        template,
        soft_tokens=config.header + config.trailer,
        new_tokens=config.new_tokens,
    )
    folder = hosts.absolute(config.teacher) if config.teacher else workdir / "teacher"
    teach = functools.partial(teacher.targets, new_tokens=config.new_tokens, folder=folder)
    batches = Batches(config, examples, encode, teach, readers, model.config.mesh)
    optimizer = setup.make_optimizer(config, config.num_steps)
    step_fn = jit_step(model, optimizer, config.loss)
    # Of a run that goes on only the sizes matter: the adapter it began with may be gone.
    begun = ConfigDict(config.to_dict() | {"init": "embeddings"}) if saved else config
    state = loss_lib.init_state(setup.initial_adapter(begun, reader), optimizer)
    if model.config.mesh:
        whole = functools.partial(sharding.put, sharding.replicated(model.config.mesh))
        state = jax.tree.map(lambda x: whole(np.asarray(x)), state)
    validate = Validation(
        reader,
        template,
        held_out,
        config.validation_sets,
        encode,
        functools.partial(teach, reader),
        config.new_tokens,
    )
    say("Reading the examples of all steps")
    described = {
        "model": model.fingerprint,
        "config": config.to_dict(),
        "examples": survey(examples, config.num_steps * config.batch_size, encode),
    }
    state = checkpoints.restore(state, described)
    start = int(state.step)
    log = Log(workdir / "metrics.jsonl", start if saved else BEFORE)
    say(f"Step {start} of {config.num_steps}; example {start * config.batch_size} of the mixture")

    def finish(step: int, metrics, work: dict[str, int], ids: list[str]):
        nonlocal finished
        row = _row(step, jax.device_get(metrics), work)
        row["seconds"], finished = time.perf_counter() - finished, time.perf_counter()
        if not np.isfinite([row["loss"], row["gradient_norm"]]).all():
            checkpoints.close()
            raise NotFinite(
                f"Step {step}: loss {row['loss']}, gradient norm {row['gradient_norm']}, on "
                f"{', '.join(ids)}. The checkpoints in {workdir} are of steps before it. Try a "
                "smaller optimizer.learning_rate or optimizer.clip_norm=1, in another workdir."
            )
        log.write(row)
        shown.add(row)
        programs.give_back()

    def due(done: int) -> bool:
        return done > 0 and (done % config.validate_every == 0 or done == config.num_steps)

    coming = range(start * config.batch_size, config.num_steps * config.batch_size)
    with hosts.together():
        if coming and hosts.is_first():
            devices = model.config.mesh.size if model.config.mesh else 1
            machine = measure_machine(model.dtype, devices)
            sample = [encode(examples[i]) for i in coming[:SAMPLE]]
            say(train_progress.forecast(reader, sample, len(coming), machine))
    with hosts.together():
        if saved is None and config.init.startswith("adapter:"):
            say(f"Validating {config.init}, which it begins with")
            scores = validate(jax.device_get(state.adapter))  # training may not better it
            log.validation(BEFORE, scores)
            say(f"As it begins, from {config.init}: validation KL {scores['kl']:.3f}")
            checkpoints.save(0, state, described, scores)
        elif due(start) and checkpoints.unscored() == start:  # stopped before it was validated
            scores = validate(jax.device_get(state.adapter))
            log.validation(start - 1, scores)
            checkpoints.save(start, state, described, scores)

    pending, newest = None, start
    finished = time.perf_counter()
    shown = train_progress.TrainingProgress(start, config.num_steps, hosts.is_first())
    with _stop_asked() as stop, shown:
        for step in range(start, config.num_steps):
            made = batches(step, stop)
            stopping = made is None
            if made:
                state, metrics = step_fn(model.params, state, made.batch)
            if pending:
                finish(*pending)
            pending = (step, metrics, made.work, made.ids) if made else None
            done = step if stopping else step + 1
            if not (due(done) or stopping or done % config.checkpoint_every == 0):
                continue
            if pending:
                finish(*pending)  # a checkpoint must not be ahead of the log
            pending, scores = None, {}
            if due(done) and not stopping:
                scores = validate(jax.device_get(state.adapter), stop)
                stopping = not scores  # there may be seconds, not minutes
            if scores:
                log.validation(step, scores)
                shown.validated(done, scores)
                finished = time.perf_counter()
            log.flush()
            programs.make_room()
            if done > newest:  # a checkpoint saved again would lose its scores
                checkpoints.save(done, state, described, scores)
                newest = done
            if stopping:
                checkpoints.close()
                say(f"Stopped at step {done}; the same command goes on from there.")
                if stop() == signal.SIGINT:
                    raise KeyboardInterrupt
                return state.adapter
    best = checkpoints.best(state)
    checkpoints.close()
    metadata = {**described, "step": best.step, **best.metadata}
    adapter_lib.save_adapter(
        workdir / "adapter", best.state.adapter, json.loads(json.dumps(metadata))
    )
    if hosts.is_first():
        train_progress.training_figure(log.path, workdir / "curves.png")
        if coming:
            with contextlib.suppress(NotImplementedError):  # programs whose FLOPs are not known
                flops = count_flops(step_fn, model.params, state, made.batch).total
                token_flops = flops / made.work["computed"]
                say(train_progress.speed(log.path, start, token_flops, machine))
    say(f"Best validation KL {best.metadata['kl']:.3f} at step {best.step}: {workdir / 'adapter'}")
    return best.state.adapter


def survey(examples: Sequence[Example], count: int, encode: Callable) -> str:
    """Reads the first `count` examples, all of a run's; a digest of them.

    `encode` raises ValueError for one that is too long: here, not hours later at its step.
    """
    read = hashlib.sha256()
    for i in range(count):
        example = examples[i]
        encode(example)
        read.update(identity.digest(dataclasses.asdict(example)).encode())
    return read.hexdigest()


def load_models(
    config: ConfigDict, cache_dir, mesh: str | None, say
) -> tuple[LanguageModel, dict[int, LanguageModel]]:
    """The model that learns, and those that teach: one on each copy that this host holds."""
    if mesh is None and jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes train together on {jax.device_count()} devices: say "
            f"how, with --mesh=data:{jax.process_count()},model:{jax.local_device_count()} or "
            "another whose product is their number."
        )
    load = functools.partial(models.load, config.model, config.dtype, cache_dir)
    model = load(mesh=mesh, scan_layers=True, remat=config.remat)
    model.check_tokenizer()
    mesh = model.config.mesh
    sharding.examples_per_replica(mesh, config.batch_size)  # refused before anything more is loaded
    apart = second_copy(config, model, jax.default_backend())
    reader = load(mesh=mesh) if apart else model
    if mesh is None:
        return model, {0: reader}
    sharding.log_layout(model.config, model.params, say)
    replicas = sharding.replicas(mesh)
    return model, {i: models.on_replica(reader, replica) for i, replica in replicas.items()}


def second_copy(config: ConfigDict, model: LanguageModel, platform: str) -> bool:
    """Whether the teacher has weights of its own.

    On a CPU it is twice as fast with them in 16 bits, which a scan there converts whole; with
    float32 weights a quarter faster, which is not worth their size, and elsewhere no faster.
    """
    return config.second_copy and platform == "cpu" and model.dtype.itemsize < 4


def jit_step(model: LanguageModel, optimizer: optax.GradientTransformation, loss: str):
    """loss.train_step(params, state, batch) for this model, compiled where its mesh is."""
    step = functools.partial(loss_lib.train_step, model.module, optimizer, loss)
    if (mesh := model.config.mesh) is None:
        return jax.jit(step, donate_argnums=1)
    whole = sharding.replicated(mesh)
    params = sharding.param_shardings(model.config, model.params)
    inputs = (params, whole, NamedSharding(mesh, PartitionSpec(sharding.DATA)))
    return jax.jit(step, donate_argnums=1, in_shardings=inputs, out_shardings=(whole, whole))


def _row(step: int, metrics, work: dict[str, int]) -> dict:
    tokens = float(metrics["tokens"])
    return {
        "step": step,
        "loss": float(metrics["loss"]),
        "gradient_norm": float(metrics["gradient_norm"]),
        "kl": float(metrics["kl"]) / tokens,
        "agree": float(metrics["agree"]) / tokens,
        **work,
    }


class Log:
    """Metrics as JSON lines, by the first host; rows of steps that a resumed run does again go.

    Written whole each time, for object storage has no appending: before a checkpoint, and as often
    as a fiftieth of the time allows.
    """

    SHARE = 50

    def __init__(self, path: epath.Path, start: int):
        self.path = path
        rows = path.read_text().splitlines() if path.exists() else []
        self._rows = [r for r in rows if json.loads(r)["step"] < start]
        self.flush()

    def validation(self, step: int, scores: dict[str, float]) -> None:
        self.write({"step": step, **{f"validation/{k}": v for k, v in scores.items()}})

    def write(self, row: dict) -> None:
        self._rows.append(json.dumps(row))
        if time.monotonic() > self._due:
            self.flush()

    def flush(self) -> None:
        began = time.monotonic()
        if hosts.is_first():
            write_whole(self.path, "".join(r + "\n" for r in self._rows))
        now = time.monotonic()
        self._due = now + self.SHARE * (now - began)


@contextlib.contextmanager
def _stop_asked() -> Iterator[Callable[[], int]]:
    """Yields what says which signal asked to stop, SIGTERM or Ctrl-C's, or 0.

    Only a program's main thread is told of signals. A second Ctrl-C stops at once, as usual.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    asked = 0

    def told(number, _):
        nonlocal asked
        asked = number
        if number == signal.SIGINT:
            signal.signal(number, before[number])
            # Not print: it may have been interrupted itself.
            os.write(2, b"\nStops after this step, with all saved. Ctrl-C again: at once.\n")

    signal.signal(signal.SIGTERM, told)
    if before[signal.SIGINT] is signal.default_int_handler:  # a job in the background ignores it
        signal.signal(signal.SIGINT, told)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
