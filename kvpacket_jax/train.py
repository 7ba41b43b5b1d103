"""The training loop: data, steps, checkpoints, validation. All state is at this edge."""

import contextlib
import functools
import json
import signal
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import models
from kvpacket_jax import adapter as adapter_lib
from kvpacket_jax import data, distill, hosts, lessons, programs, train_report
from kvpacket_jax.adapter import Adapter
from kvpacket_jax.batches import Batches
from kvpacket_jax.checkpoint import Checkpoints
from kvpacket_jax.machine import measure_machine
from kvpacket_jax.profiling import count_flops
from kvpacket_jax.validation import Validation
from models import LanguageModel, sharding
from models.files import write_whole

SAMPLE = 20  # examples that the forecast of a run's time looks at
DECAYS = ("cosine", "linear", "constant")


# Settings that may change when a run is resumed; any other would make it a different run.
FREE = (
    "checkpoint_every",
    "validate_every",
    "validation_sets",
    "second_copy",
    "remat",
    "model",
    "teacher",
)


class NotFinite(RuntimeError):
    """The loss or a gradient became NaN or infinite; the checkpoints are of steps before it."""


def _settled(config: ConfigDict, saved: dict | None) -> ConfigDict:
    """The config with its dtype decided; ValueError if it is not that of the run it resumes.

    "auto" goes by the machine: a run resumed on another one must not decide anew.
    """
    config = ConfigDict(config.to_dict())
    if saved and config.dtype == "auto":
        config.dtype = saved["config"]["dtype"]
    elif config.dtype == "auto":
        config.dtype = models.fastest_dtype()
    if saved:
        # As JSON has it: tuples are lists there.
        old, new = saved["config"], json.loads(json.dumps(config.to_dict()))
        differ = [k for k in sorted(old | new) if old.get(k) != new.get(k) and k not in FREE]
        if differ:
            raise ValueError(
                f"The run in this workdir was started with other settings of {', '.join(differ)}: "
                f"{ {k: old.get(k) for k in differ} }, not { {k: new.get(k) for k in differ} }. "
                "Give them again, or choose another --workdir."
            )
    return config


def make_optimizer(config: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """AdamW with warm-up, decay, optional clipping, and accumulation over steps."""
    o = config.optimizer
    if config.loss not in distill.LOSSES:
        raise ValueError(f"loss {config.loss!r} is not one of {', '.join(distill.LOSSES)}.")
    if config.reduction not in distill.REDUCTIONS:
        known = ", ".join(distill.REDUCTIONS)
        raise ValueError(f"reduction {config.reduction!r} is not one of {known}.")
    if o.decay not in DECAYS:
        raise ValueError(f"optimizer.decay {o.decay!r} is not one of {', '.join(DECAYS)}.")
    updates = max(num_steps // config.accumulate, 1)
    after = max(updates - o.warmup_steps, 1)
    schedule = {
        "cosine": lambda: optax.cosine_decay_schedule(o.learning_rate, after, o.final),
        "linear": lambda: optax.linear_schedule(o.learning_rate, o.learning_rate * o.final, after),
        "constant": lambda: optax.constant_schedule(o.learning_rate),
    }[o.decay]()
    if o.warmup_steps:
        start = o.learning_rate / (o.warmup_steps + 1)
        warmup = optax.linear_schedule(start, o.learning_rate, o.warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [o.warmup_steps])
    adamw = optax.adamw(schedule, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay)
    chain = optax.chain(optax.clip_by_global_norm(o.clip_norm), adamw) if o.clip_norm else adamw
    if config.accumulate > 1:
        # MultiSteps averages; the published sum is that times their number.
        if config.reduction == "sum":
            chain = optax.chain(optax.scale(config.accumulate), chain)
        chain = optax.MultiSteps(chain, config.accumulate).gradient_transformation()
    return chain


def initial_adapter(config: ConfigDict, model: LanguageModel) -> Adapter:
    """What training begins with: `config.init`, seeded.

    "embeddings": from the embedding table's moments. "text:…": a text's embeddings, repeated.
    "adapter:…": one that was trained, by its folder or shipped name; what is longer here begins
    as "embeddings", behind its header and behind its trailer.

    Raises ValueError for another `init`, no header or trailer, and for an adapter with more tokens
    or for another model.
    """
    if min(config.header, config.trailer) < 1:  # orbax stores no array without numbers
        raise ValueError(
            f"header is {config.header} and trailer {config.trailer}: each has one token or more."
        )
    kind, _, what = config.init.partition(":")
    if kind == "text" and what:
        ids = model.tokenizer.encode(what)
        need = config.header + config.trailer
        ids = (ids * need)[:need]
        tokens = jnp.asarray(model.params["embedding"], jnp.float32)[jnp.array(ids)]
        return Adapter(tokens[: config.header], tokens[config.header :])
    key = jax.random.key(config.seed)
    fresh = adapter_lib.init(key, model.params["embedding"], config.header, config.trailer)
    if config.init == "embeddings":
        return fresh
    if kind != "adapter" or not what:
        raise ValueError(f"init {config.init!r} is none of 'embeddings', 'text:…' and 'adapter:…'.")
    trained = adapter_lib.load_adapter(what, model)
    for name, old, new in zip(Adapter._fields, trained, fresh, strict=True):
        if len(old) > len(new):
            raise ValueError(
                f"The adapter {what} has a {name} of {len(old)} tokens, longer than the "
                f"{len(new)} of this run: set config.{name}={len(old)} or more."
            )
    parts = zip(trained, fresh, strict=True)
    return Adapter(*(jnp.concatenate([old, new[len(old) :]]) for old, new in parts))


def sources(config: ConfigDict, split: str) -> dict[str, list]:
    """The data sets of the mixture by the names of its entries."""
    return {
        name: data.load(entry.name, split, **data.options(entry)) for name, entry in entries(config)
    }


def entries(config: ConfigDict) -> list[tuple[str, ConfigDict]]:
    """The mixture's entries with a positive weight, in a fixed order."""
    return [(k, config.mixture[k]) for k in sorted(config.mixture) if config.mixture[k].weight > 0]


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
      The best adapter by validation KL.

    Raises:
      NotFinite: names the batch; the checkpoints are of steps before it.
    """
    models.check_reads_text(config.model)
    say = say if hosts.is_first() else lambda *_: None
    workdir = hosts.absolute(workdir)
    hosts.check_shared(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    say(f"Loading {config.model}")
    checkpoints = Checkpoints(workdir / "checkpoints")
    saved = checkpoints.metadata()
    config = _settled(config, saved)
    model, readers = load_models(config, cache_dir, mesh, say)
    train_sets = sources(config, "train")
    weights = [entry.weight for _, entry in entries(config)]
    examples = data.mixture(list(train_sets.values()), weights, config.seed)
    template = data.TEMPLATES[config.template]
    encode = functools.partial(data.encode_example, model.tokenizer, template)
    folder = hosts.absolute(config.teacher) if config.teacher else workdir / "teacher"
    teach = functools.partial(lessons.lesson, new_tokens=config.new_tokens, folder=folder)
    batches = Batches(config, examples, encode, teach, readers, model.config.mesh)
    optimizer = make_optimizer(config, config.num_steps)
    step_fn = jit_step(model, optimizer, config.loss)
    reader = next(iter(readers.values()))
    # Of a run that goes on only the sizes matter: the adapter it began with may be gone.
    begun = ConfigDict(config.to_dict() | {"init": "embeddings"}) if saved else config
    state = distill.init_state(initial_adapter(begun, reader), optimizer)
    if model.config.mesh:
        whole = functools.partial(sharding.put, sharding.replicated(model.config.mesh))
        state = jax.tree.map(lambda x: whole(np.asarray(x)), state)
    described = {"model": model.fingerprint, "config": config.to_dict()}
    state = checkpoints.restore(state, described)
    start = int(state.step)
    log = Log(workdir / "metrics.jsonl", start)
    validate = Validation(
        reader,
        template,
        sources(config, "validation"),
        config.validation_sets,
        functools.partial(teach, reader),
        config.new_tokens,
    )
    stop = _on_sigterm()
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
        progress.update(row)
        programs.give_back()

    coming = range(start * config.batch_size, config.num_steps * config.batch_size)
    with hosts.together():
        if coming and hosts.is_first():
            devices = model.config.mesh.size if model.config.mesh else 1
            machine = measure_machine(model.dtype, devices)
            sample = [encode(examples[i]) for i in coming[:SAMPLE]]
            say(train_report.forecast(reader, sample, len(coming), machine))
        if saved is None and config.init.startswith("adapter:"):
            scores = validate(jax.device_get(state.adapter))  # training may not better it
            log.write({"step": -1, **{f"validation/{k}": v for k, v in scores.items()}})
            say(f"As it begins, from {config.init}: validation KL {scores['kl']:.3f}")
            checkpoints.save(0, state, described, scores)

    pending, newest = None, start
    finished = time.perf_counter()
    with train_report.TrainingProgress(start, config.num_steps, hosts.is_first()) as progress:
        for step in range(start, config.num_steps):
            made = batches(step, stop)
            stopping = made is None
            if made:
                state, metrics = step_fn(model.params, state, made.batch)
            if pending:
                finish(*pending)
            pending = (step, metrics, made.work, made.ids) if made else None
            done = step if stopping else step + 1
            checked = done % config.validate_every == 0 or done == config.num_steps
            checked = checked and not stopping  # SIGTERM leaves seconds, not minutes
            if not (checked or stopping or done % config.checkpoint_every == 0):
                continue
            if pending:
                finish(*pending)  # a checkpoint must not be ahead of the log
            pending, scores = None, {}
            if checked:
                scores = validate(jax.device_get(state.adapter))
                log.write({"step": step, **{f"validation/{k}": v for k, v in scores.items()}})
                progress.validated(done, scores)
                finished = time.perf_counter()
            log.flush()
            programs.make_room()
            if done > newest:  # a checkpoint saved again would lose its scores
                checkpoints.save(done, state, described, scores)
                newest = done
            if stopping:
                checkpoints.close()
                say(f"Stopped by SIGTERM at step {done}; the same command goes on from there.")
                return state.adapter
    best = checkpoints.best(state)
    checkpoints.close()
    metadata = {**described, "step": best.step, **best.metadata}
    adapter_lib.save_adapter(
        workdir / "adapter", best.state.adapter, json.loads(json.dumps(metadata))
    )
    if hosts.is_first():
        train_report.training_figure(log.path, workdir / "curves.png")
        if coming:
            with contextlib.suppress(NotImplementedError):  # programs whose FLOPs are not known
                flops = count_flops(step_fn, model.params, state, made.batch).total
                token_flops = flops / made.work["computed"]
                say(train_report.speed(log.path, start, token_flops, machine))
    say(f"Best validation KL {best.metadata['kl']:.3f} at step {best.step}: {workdir / 'adapter'}")
    return best.state.adapter


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
    sharding.share_of_a_copy(mesh, config.batch_size)  # refused before anything more is loaded
    apart = second_copy(config, model, jax.default_backend())
    reader = load(mesh=mesh) if apart else model
    if mesh is None:
        return model, {0: reader}
    sharding.tell(model.config, model.params, say)
    rows = sharding.rows(mesh)
    return model, {i: models.on_row(reader, row) for i, row in rows.items()}


def second_copy(config: ConfigDict, model: LanguageModel, platform: str) -> bool:
    """Whether the teacher has weights of its own.

    On a CPU it is twice as fast with them in 16 bits, which a scan there converts whole; with
    float32 weights a quarter faster, which is not worth their size, and elsewhere no faster.
    """
    return config.second_copy and platform == "cpu" and model.dtype.itemsize < 4


def jit_step(model: LanguageModel, optimizer: optax.GradientTransformation, loss: str):
    """distill.train_step(params, state, batch) for this model, compiled where its mesh is."""
    step = functools.partial(distill.train_step, model.module, optimizer, loss)
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
        self._rows = [r for r in rows if _step(r) < start]
        self.flush()

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


def _step(row: str) -> float:
    try:
        return json.loads(row)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line cut short by a kill


def _on_sigterm() -> Callable[[], bool]:
    caught = []
    signal.signal(signal.SIGTERM, lambda *_: caught.append(True))
    return lambda: bool(caught)
