"""What a config of training means: its checks, mixture, shapes, optimiser and first adapter."""

import dataclasses
import hashlib
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import models
from kvpacket_jax import adapters, data
from kvpacket_jax.data import Example
from kvpacket_jax.data.mixture import mixture
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets import distiller as distiller_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import round_up
from kvpacket_jax.runtime import resume
from kvpacket_jax.train import loss as loss_lib
from kvpacket_jax.train.shapes import FITTING, PREAMBLE_MULTIPLE, Shape
from kvpacket_jax.train.step import Rates
from models import LanguageModel, identity, low_rank

MAX_SHAPES = 8  # of a mixture: each is a program or two, compiled before the first step ends
CHOICES = ("auto", "yes", "no")
SHIPPED = "shipped"  # the init that is the model's own adapter

# Settings that may change when a run is resumed; any other would make it a different run.
FREE = (
    "num_steps",
    "finish",
    "finish_minutes",  # of earlier versions
    "checkpoint_every",
    "validate_every",
    "scales",
    "scan_layers",
    "remat",
    "model",
    "other_model",
)
# What runs had that are older than a setting.
OLDER = {
    "shared_layers": "",
    "learn_writer": True,
    "distiller_rank": 0,
    "keeps": [1.0],
    "opening": False,
    "best_first": 0.0,
}
AT_LEAST_ONE = ("microbatches", "num_steps", "checkpoint_every", "validate_every")
SIZES = ("documents", "tokens", "questions", "row", "new_tokens", "answers", "learning")


def check(config: ConfigDict) -> None:
    """Raises ValueError for settings that no run can have, before anything is loaded."""
    check_validation(config)
    _check_known(config, {"loss": loss_lib.LOSSES, "reduction": loss_lib.REDUCTIONS})
    for name in AT_LEAST_ONE:
        if config[name] < 1:
            raise ValueError(f"{name} is {config[name]}: it is 1 or more.")
    for name in ("header", "trailer", "writer_rank", "distiller_rank", "finish"):
        if config[name] < 0:
            raise ValueError(f"{name} is {config[name]}: it is 0 or more.")
    if config.wrong_weight < 0:
        raise ValueError(f"wrong_weight is {config.wrong_weight}: it is 0 or more.")
    for name in ("learning_rate", "writer_learning_rate", "warmup_steps", "eps", "clip_norm"):
        if not config.optimizer[name] >= 0:
            raise ValueError(f"optimizer.{name} is {config.optimizer[name]}: it is 0 or more.")
    if not 0 <= config.best_first <= 1:
        raise ValueError(f"best_first is {config.best_first}: it is a share, from 0 to 1.")
    if not 0 <= config.mean_decay < 1:
        raise ValueError(f"mean_decay is {config.mean_decay}: it is from 0 to below 1.")
    if not config.scales or min(config.scales) <= 0:
        raise ValueError(f"scales are {tuple(config.scales)}: one or more numbers above 0.")
    if not config.keeps or not all(0 < keep <= 1 for keep in config.keeps):
        raise ValueError(f"keeps are {tuple(config.keeps)}: one or more shares, above 0 to 1.")
    if min(config.keeps) < 1 and not config.distiller_rank:
        raise ValueError("keeps below 1 need a distiller that keeps them: set distiller_rank.")
    if min(config.keeps) == 1 and config.distiller_rank:
        raise ValueError("A distiller learns nothing where all is kept: set keeps, to (0.5,) say.")
    if unknown := [n for n in config.writer_matrices if n not in low_rank.MATRICES]:
        raise ValueError(
            f"writer_matrices names {', '.join(unknown)}; there are {', '.join(low_rank.MATRICES)}."
        )
    kind, _, what = config.init.partition(":")
    if config.init not in ("untrained", SHIPPED) and not (kind in ("text", "adapter") and what):
        raise ValueError(
            f"init {config.init!r} is none of 'untrained', 'shipped', 'text:…' and 'adapter:…'."
        )
    if config.learn_primer and not config.primer:
        raise ValueError("learn_primer begins with a primer: set primer, to 'primer' say.")
    learned = [config[p] for p in ("header", "trailer", "distiller_rank", "learn_primer")]
    if not any([*learned, config.writer_rank and config.learn_writer]):
        raise ValueError(
            "Nothing would be trained: give header, trailer or distiller_rank a size, writer_rank "
            "with learn_writer=True, or learn_primer=True."
        )
    if not config.learn_writer and tuple(config.scales) != (1.0,):
        raise ValueError("scales are of what a writer learned: with learn_writer=False, (1.0,).")
    _check_mixture(config)


def check_validation(config: ConfigDict) -> None:
    """Raises ValueError for settings that no validation or card can have, a run's neither."""
    _check_known(config, {"template": data.TEMPLATES, "scan_layers": CHOICES, "remat": CHOICES})
    if config.batch_size < 1:
        raise ValueError(f"batch_size is {config.batch_size}: it is 1 or more.")
    if not kinds(config):
        raise ValueError("validation has no kind: the best adapter is chosen by its worst kind.")
    _check_sizes("validation", kinds(config), (*SIZES, "sets"))
    check_budget(config.template, kinds(config))


def _check_known(config: ConfigDict, known: dict[str, Collection[str]]) -> None:
    for name, values in known.items():
        if config[name] not in values:
            raise ValueError(f"{name} {config[name]!r} is not one of {', '.join(values)}.")


def _check_sizes(part: str, listed: list[tuple[str, ConfigDict]], sizes: Sequence[str]) -> None:
    for name, entry in listed:
        for size in sizes:
            if entry[size] < 1:
                raise ValueError(f"{part}.{name}.{size} is {entry[size]}: it is 1 or more.")
        if entry.row <= entry.new_tokens // 2:
            raise ValueError(
                f"{part}.{name}.row is {entry.row}: it holds a question and its answer of up "
                f"to {entry.new_tokens} tokens, so it must be much longer."
            )


def _check_mixture(config: ConfigDict) -> None:
    chosen = entries(config)
    if not chosen:
        raise ValueError("The mixture has no entry with a positive weight: nothing to train on.")
    _check_sizes("mixture", chosen, SIZES)
    check_budget(config.template, chosen)
    shapes = {(config.batch_size, *(entry[s] for s in SIZES)) for _, entry in chosen}
    if len(shapes) > MAX_SHAPES:
        raise ValueError(
            f"The mixture has entries of {len(shapes)} sizes, more than {MAX_SHAPES}: each is a "
            f"program of its own. Give some the same {', '.join(SIZES)}."
        )


def check_budget(template: str, sized: list[tuple[str, ConfigDict]]) -> None:
    """Raises ValueError for entries with no room for what a template says before its answers."""
    least = data.TEMPLATES[template].budget(1)
    for name, entry in sized:
        if entry.new_tokens < least:
            raise ValueError(
                f"{name}.new_tokens is {entry.new_tokens}: answers of template {template!r} take "
                f"{least} or more, for it reasons first. Raise it, and row and answers with it, or "
                "choose another template."
            )


def entries(config: ConfigDict) -> list[tuple[str, ConfigDict]]:
    """The mixture's entries with a positive weight, in a fixed order."""
    return [(k, config.mixture[k]) for k in sorted(config.mixture) if config.mixture[k].weight > 0]


def preamble_length(
    model: LanguageModel, template: data.Template, *sources: Sequence[Example]
) -> int:
    """Tokens of the longest preamble, judged by the first example of each source."""
    return max(len(data.encode_example(model.tokenizer, template, s[0]).preamble) for s in sources)


def shape_of(entry: ConfigDict, preamble: int) -> Shape:
    """The shape of a mixture entry's examples; `preamble` is the length of the template's."""
    sizes = {name: entry[name] for name in SIZES if name != "learning"}
    return Shape(round_up(preamble, PREAMBLE_MULTIPLE), **sizes)


def sources(config: ConfigDict) -> dict[str, Sequence[Example]]:
    """The training data of each entry of the mixture."""
    return {name: _load(entry, "train") for name, entry in entries(config)}


def kinds(config: ConfigDict) -> list[tuple[str, ConfigDict]]:
    """The kinds of documents that are validated on, in a fixed order."""
    return [(k, config.validation[k]) for k in sorted(config.validation)]


def validation_sources(config: ConfigDict) -> dict[str, Sequence[Example]]:
    """The data of each kind that is validated on."""
    return {name: _load(kind, kind.split) for name, kind in kinds(config)}


def _load(entry: ConfigDict, split: str) -> Sequence[Example]:
    return data.load(entry.name, split, **data.options(entry))


def schedule(config: ConfigDict, train: dict[str, Sequence[Example]]):
    """Which examples each microbatch has: an endless sequence of (entry, first index).

    A microbatch has `config.batch_size` examples in a row of one entry. It follows from the seed
    and its number alone.
    """
    weights = [entry.weight for _, entry in entries(config)]
    starts = [
        [(name, i * config.batch_size) for i in range(max(len(source) // config.batch_size, 1))]
        for name, source in train.items()
    ]
    return mixture(starts, weights, config.seed)


def digest_of(sets: dict[str, Sequence[Example]], best_first: bool = False) -> str:
    """SHA-256 of all examples of data sets: a run is resumed on the same ones only.

    A generated source has a fingerprint, of all that its examples are a function of. How they are
    cut to shapes and ordered counts too.
    """
    digest = hashlib.sha256(f"{FITTING}{' best first' if best_first else ''}".encode())
    for name, source in sorted(sets.items()):
        if fingerprint := getattr(source, "fingerprint", None):
            digest.update(identity.digest([name, fingerprint]).encode())
            continue
        for example in source:
            digest.update(identity.digest([name, dataclasses.asdict(example)]).encode())
    return digest.hexdigest()


def rates(config: ConfigDict, step: int, left: float = 1.0) -> Rates:
    """The learning rates of update `step`, counted from 0: a linear warm-up, times `left`.

    Args:
      left: what is left, from 1 to 0, of the steps that the run finishes in.
    """
    o = config.optimizer
    scale = min(1.0, (step + 1) / (o.warmup_steps + 1)) * left
    tokens, writer = np.float32(scale * o.learning_rate), np.float32(scale * o.writer_learning_rate)
    return Rates(tokens, writer if config.learn_writer else np.float32(0), writer)


def steps_left(config: ConfigDict, step: int, finish_from: int | None) -> float:
    """What is left of the `config.finish` steps from update `finish_from` on, from 1 to 0."""
    return 1.0 if finish_from is None else max(0.0, 1 - (step - finish_from) / config.finish)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam's directions; the rates are applied in step.update."""
    o = config.optimizer
    return optax.scale_by_adam(b1=o.b1, b2=o.b2, eps=o.eps)


def resolved(config: ConfigDict, saved: dict | None) -> ConfigDict:
    """The config with dtype and init decided; ValueError if it is not the resumed run's.

    "auto" goes by the machine: a run resumed on another one must not decide anew.
    """
    config = ConfigDict(config.to_dict())
    if config.init == SHIPPED:
        name = adapters.default_for(config.model)
        config.init = "untrained" if name == adapters.PRIMER else f"adapter:{name}"
    config.best_first *= config.opening  # it counts with openings alone
    if saved and config.dtype == "auto":
        config.dtype = saved["config"]["dtype"]
    elif config.dtype == "auto":
        config.dtype = models.fastest_dtype()
    if saved:
        subject = "The run in this workdir was started with other settings"
        stored = resume.wherever(OLDER | saved["config"])
        resume.check(stored, resume.wherever(config.to_dict()), subject, FREE)
    return config


def run_choices(config: ConfigDict, platform: str) -> dict[str, bool | int]:
    """How the model's layers run: scanned with remat, but on a CPU unrolled without.

    There a scan widens all its 16-bit weights to float32, remat is undone in unrolled layers, and
    memory is plenty. Elsewhere few large blocks of attention are faster than many small ones.
    """
    on_cpu = platform == "cpu"
    choose = lambda value: not on_cpu if value == "auto" else value == "yes"  # noqa: E731
    unrolled = config.scan_layers == "auto" and config.shared_layers
    return {
        "scan_layers": choose(config.scan_layers) and not unrolled,
        "remat": choose(config.remat),
        "query_block": 128 if on_cpu else 512,
        "key_block": 0,  # rows are short, and each block's state would be kept for gradients
    }


def initial_adapter(
    config: ConfigDict, model: LanguageModel, primer: jax.Array | None = None
) -> Adapter:
    """What training begins with: `config.init`, seeded, with the parts that the config names.

    "untrained": soft tokens from the embedding table's moments and a writer that changes nothing.
    "text:…": soft tokens are a text's embeddings, repeated. "adapter:…": one that was trained, by
    its folder or name; what it lacks begins as "untrained", longer soft tokens after its own.

    Args:
      primer: the token ids that the config's names, if they are known.

    Raises ValueError for a trained adapter with parts that this run does not train.
    """
    kind, _, what = config.init.partition(":")
    table, key = model.params["embedding"], jax.random.key(config.seed)
    adapter = adapter_lib.init(key, table, config.header, config.trailer)
    if kind == "text":
        ids = model.tokenizer.encode(what)
        need = config.header + config.trailer
        ids = (ids * need)[:need]
        tokens = jnp.asarray(table, jnp.float32)[jnp.array(ids, jnp.int32)]
        adapter = Adapter(tokens[: config.header], tokens[config.header :])
    if config.writer_rank:
        factors = low_rank.init(
            model.config, jax.random.fold_in(key, 1), config.writer_rank, config.writer_matrices
        )
        adapter = adapter._replace(writer=factors)
    if config.distiller_rank:
        seed = jax.random.fold_in(key, 2)
        made = distiller_lib.init(model.config, seed, config.distiller_rank)
        adapter = adapter._replace(distiller=made)
    ids = primer_ids(config, model) if primer is None else primer
    if ids is not None:
        embedded = jnp.asarray(table, jnp.float32)[ids] if config.learn_primer else ids
        adapter = adapter._replace(primer=embedded)
    return _continued(what, adapter, config, model) if kind == "adapter" else adapter


def primer_ids(config: ConfigDict, model: LanguageModel) -> jax.Array | None:
    """The token ids that `config.primer` names, int32 `[p]`; None where it names none.

    Raises ValueError for what has no primer of token ids.
    """
    if not config.primer:
        return None
    chosen = adapters.choose(model, config.primer, config.template, config.other_model)
    ids = None if chosen is None else chosen.primer
    if ids is None or jnp.issubdtype(ids.dtype, jnp.floating):
        raise ValueError(
            f"primer {config.primer!r} names no adapter with a primer of token ids: give 'primer', "
            "or '' for none."
        )
    return ids


def _continued(source: str, fresh: Adapter, config: ConfigDict, model: LanguageModel) -> Adapter:
    trained = adapters.choose(model, source, config.template, config.other_model)
    if trained is None:
        raise ValueError(f"init 'adapter:{source}' names no adapter: give 'untrained'.")
    parts = {}
    for name in ("header", "trailer"):
        old, new = getattr(trained, name), getattr(fresh, name)
        if len(old) > len(new):
            raise ValueError(
                f"The adapter {source} has a {name} of {len(old)} tokens, longer than the "
                f"{len(new)} of this run: set config.{name}={len(old)} or more."
            )
        parts[name] = jnp.concatenate([old, new[len(old) :]])
    for name, settings in (
        ("writer", "writer_rank and writer_matrices"),
        ("distiller", "distiller_rank"),
    ):
        old, new = getattr(trained, name), getattr(fresh, name)
        if old and jax.tree.map(jnp.shape, old) != jax.tree.map(jnp.shape, new):
            raise ValueError(
                f"The adapter {source} has {adapter_lib.describe(trained)}; this run trains "
                f"{adapter_lib.describe(fresh)}. Give {settings} as it has them."
            )
        parts[name] = old or new
    primer = _continued_primer(source, trained.primer, fresh.primer, config, model)
    return Adapter(**parts, primer=primer)


def _continued_primer(
    source: str, old: jax.Array | None, new: jax.Array | None, config: ConfigDict, model
) -> jax.Array | None:
    if old is None:
        return new
    learned = jnp.issubdtype(old.dtype, jnp.floating)
    if learned and not config.learn_primer:
        raise ValueError(
            f"The adapter {source} has a learned primer: set config.learn_primer=True."
        )
    if not config.learn_primer:
        return old
    if not learned:
        old = jnp.asarray(model.params["embedding"], jnp.float32)[old]
    if old.shape != new.shape:
        raise ValueError(
            f"The adapter {source} has a primer of {len(old)} tokens, this run learns one of "
            f"{len(new)}: set config.primer to the one that it began with."
        )
    return old


def check_length(model: LanguageModel, name: str, shape: Shape, soft_tokens: int) -> None:
    """Raises ValueError for an entry whose longest example is beyond the model's context."""
    try:
        model.check_length(shape.positions(soft_tokens))
    except ValueError as error:
        raise ValueError(f"The entry {name}, of the sizes in its config: {error}") from error
