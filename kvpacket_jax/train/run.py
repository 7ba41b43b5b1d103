"""What a training run consists of, loaded and checked before its first step."""

from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

import models
from kvpacket_jax import data
from kvpacket_jax.data.order import PartlyBestFirst
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter, split_trainable
from kvpacket_jax.packets.packet import read_primer
from kvpacket_jax.train import setup
from kvpacket_jax.train.batches import Teaching
from kvpacket_jax.train.validation import Validation
from models import LanguageModel, sharding
from models.kv_cache import KVCache


class Run(NamedTuple):
    """What a run consists of, loaded and checked; nothing of it changes."""

    config: ConfigDict
    workdir: epath.Path
    model: LanguageModel
    teaching: Teaching
    schedule: grain.MapDataset  # (entry, first example) of each microbatch
    validate: Validation
    optimizer: optax.GradientTransformation
    initial: Adapter
    primer_ids: jax.Array | None
    primer: KVCache | None
    description: dict  # JSON-able; saved with every checkpoint
    saved: dict | None  # the description of the run that it goes on with


def prepare(
    config: ConfigDict, workdir: epath.Path, saved: dict | None, cache_dir, mesh: str | None, log
) -> Run:
    """Loads and checks all that a run needs; `saved` describes the run that it goes on with."""
    config = setup.resolved(config, saved)
    log("Reading the training examples")  # first: a missing file is told before a download
    train_sets, kinds = setup.sources(config), setup.validation_sources(config)
    template = data.TEMPLATES[config.template]
    log(f"Loading {config.model}")
    model = load_model(config, cache_dir, mesh)
    if model.config.mesh:
        sharding.log_layout(model.config, model.params, log)
    # Of a run that goes on only the sizes matter: the adapters it began with may be gone.
    begun = ConfigDict(config.to_dict() | {"init": "untrained"}) if saved else config
    known = saved["primer"] if saved else None
    ids = setup.primer_ids(config, model) if known is None else jnp.array(known, jnp.int32)
    initial, primer_ids = split_trainable(setup.initial_adapter(begun, model, ids))
    ids = ids if primer_ids is None else primer_ids  # an adapter's own, where it began with one
    preamble = setup.preamble_length(model, template, *train_sets.values(), *kinds.values())

    def teaching_of(sources, entries, wrong_weight: float) -> Teaching:
        shapes = {name: setup.shape_of(entry, preamble) for name, entry in entries}
        for name, shape in shapes.items():
            setup.check_length(model, name, shape, initial.num_tokens)
        sizes = config.batch_size, initial.num_tokens, wrong_weight, config.seed
        keeps = tuple(config.keeps)
        return Teaching(model, template, sources, shapes, *sizes, keeps, config.opening)

    ordered = {n: PartlyBestFirst(s, config.best_first) for n, s in train_sets.items()}
    teaching = teaching_of(ordered, setup.entries(config), config.wrong_weight)
    sets = {name: entry.sets for name, entry in setup.kinds(config)}
    validate = Validation(teaching_of(kinds, setup.kinds(config), 1.0), sets)
    description = {
        "model": model.fingerprint,
        "model_name": model.name,
        "config": config.to_dict(),
        "examples": setup.digest_of(train_sets),
        "validated_on": setup.digest_of(kinds, config.opening),
        "primer": None if ids is None else np.asarray(ids).tolist(),  # a learned one's first
        "baseline": (saved or {}).get("baseline"),
        "finish_from": (saved or {}).get("finish_from"),
    }
    primer = read_primer(model, adapter_lib.empty(model.config.dim)._replace(primer=primer_ids))
    return Run(
        config,
        workdir,
        model,
        teaching,
        setup.schedule(config, ordered),
        validate,
        setup.make_optimizer(config),
        initial,
        primer_ids,
        primer,
        description,
        saved,
    )


def load_model(config: ConfigDict, cache_dir, mesh: str | None) -> LanguageModel:
    """The frozen model, teacher and student in one, but for shared layers: the teacher has none.

    Raises ValueError as `setup.check_validation`, before it is read, and for a missing mesh.
    """
    setup.check_validation(config)
    if mesh is None and jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes train together on {jax.device_count()} devices: say "
            f"how, with --mesh=data:{jax.process_count()},model:{jax.local_device_count()} or "
            "another whose product is their number."
        )
    choices = setup.run_choices(config, jax.default_backend())
    shared = config.shared_layers
    model = models.load(config.model, config.dtype, cache_dir, mesh, shared, **choices)
    model.check_tokenizer()
    sharding.examples_per_replica(model.config.mesh, config.batch_size)  # refuses what is uneven
    return model
