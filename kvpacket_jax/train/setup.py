"""What a config of training means: its checks, optimiser, data sets and first adapter."""

import json

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import models
from kvpacket_jax import data
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.train import loss
from models import LanguageModel

DECAYS = ("cosine", "linear", "constant")


# Settings that may change when a run is resumed; any other would make it a different run.
FREE = (
    "checkpoint_every",
    "validate_every",
    "second_copy",
    "remat",
    "model",
    "other_model",
    "teacher",
)
AT_LEAST_ONE = (
    "batch_size",
    "accumulate",
    "num_steps",
    "checkpoint_every",
    "validate_every",
    "validation_sets",
)


def check(config: ConfigDict) -> None:
    """Raises ValueError for settings that no run can have, before anything is loaded."""
    for name, value, known in (
        ("loss", config.loss, loss.LOSSES),
        ("reduction", config.reduction, loss.REDUCTIONS),
        ("optimizer.decay", config.optimizer.decay, DECAYS),
        ("template", config.template, data.TEMPLATES),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}.")
    for name in AT_LEAST_ONE:
        if config[name] < 1:
            raise ValueError(f"{name} is {config[name]}: it is 1 or more.")
    if config.num_steps % config.accumulate:
        raise ValueError(
            f"num_steps is {config.num_steps}, not a multiple of accumulate, {config.accumulate}: "
            "what the last steps learn would reach no update."
        )
    if min(config.header, config.trailer) < 1:  # orbax stores no array without numbers
        raise ValueError(
            f"header is {config.header} and trailer {config.trailer}: each has one token or more."
        )
    kind, _, what = config.init.partition(":")
    if config.init != "embeddings" and not (kind in ("text", "adapter") and what):
        raise ValueError(f"init {config.init!r} is none of 'embeddings', 'text:…' and 'adapter:…'.")


def learning_rate(config: ConfigDict, updates: int) -> optax.Schedule:
    """The rate of each of `updates` updates: a warm-up to the full rate, then the decay."""
    o = config.optimizer
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
    return schedule


def make_optimizer(config: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """AdamW with its schedule, optional clipping, and accumulation over steps."""
    o = config.optimizer
    schedule = learning_rate(config, max(num_steps // config.accumulate, 1))
    adamw = optax.adamw(schedule, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay)
    chain = optax.chain(optax.clip_by_global_norm(o.clip_norm), adamw) if o.clip_norm else adamw
    if config.accumulate > 1:
        # MultiSteps averages; the published sum is that times their number.
        if config.reduction == "sum":
            chain = optax.chain(optax.scale(config.accumulate), chain)
        chain = optax.MultiSteps(chain, config.accumulate).gradient_transformation()
    return chain


def resolved(config: ConfigDict, saved: dict | None) -> ConfigDict:
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


def sources(config: ConfigDict, split: str) -> dict[str, list]:
    """The data sets of the mixture by the names of its entries."""
    return {
        name: data.load(entry.name, split, **data.options(entry)) for name, entry in entries(config)
    }


def entries(config: ConfigDict) -> list[tuple[str, ConfigDict]]:
    """The mixture's entries with a positive weight, in a fixed order."""
    return [(k, config.mixture[k]) for k in sorted(config.mixture) if config.mixture[k].weight > 0]


def initial_adapter(config: ConfigDict, model: LanguageModel) -> Adapter:
    """What training begins with: `config.init`, seeded.

    "embeddings": from the embedding table's moments. "text:…": a text's embeddings, repeated.
    "adapter:…": one that was trained, by its folder or shipped name; what is longer here begins
    as "embeddings", behind its header and behind its trailer.

    Raises ValueError for an adapter with more tokens or, without `config.other_model`, for another
    model.
    """
    kind, _, what = config.init.partition(":")
    if kind == "text":
        ids = model.tokenizer.encode(what)
        need = config.header + config.trailer
        ids = (ids * need)[:need]
        tokens = jnp.asarray(model.params["embedding"], jnp.float32)[jnp.array(ids)]
        return Adapter(tokens[: config.header], tokens[config.header :])
    key = jax.random.key(config.seed)
    fresh = adapter_lib.init(key, model.params["embedding"], config.header, config.trailer)
    if kind == "embeddings":
        return fresh
    trained = adapter_lib.load_adapter(what, model, config.other_model)
    for name, old, new in zip(Adapter._fields, trained, fresh, strict=True):
        if len(old) > len(new):
            raise ValueError(
                f"The adapter {what} has a {name} of {len(old)} tokens, longer than the "
                f"{len(new)} of this run: set config.{name}={len(old)} or more."
            )
    parts = zip(trained, fresh, strict=True)
    return Adapter(*(jnp.concatenate([old, new[len(old) :]]) for old, new in parts))
