"""The identity of a model: SHA-256 over its config and the bytes that its weights came from.

Not over the loaded arrays: those differ by dtype and by device, the model does not. The bytes are
hashed while they are read (foreign/digests.py), never remembered by a path, a size or a time.
"""

import dataclasses
import hashlib
import json

from models.config import ModelConfig

# What has a default in ModelConfig is no part of the model, but for shared layers, which
# `constants` adds where there are some: models without them keep their fingerprints.
RUN_CHOICES = {
    f.name for f in dataclasses.fields(ModelConfig) if f.default is not dataclasses.MISSING
}


def digest(value) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def model_fingerprint(config: ModelConfig, sources: list[str]) -> str:
    """SHA-256 of the config and of the digests of the files that the weights came from."""
    return digest({"config": constants(config), "sources": sources})


def constants(config: ModelConfig) -> dict:
    """A config's properties of the model, without the choices of how to run it; JSON-able.

    Shared layers are named where there are some: the model gives other numbers with them.
    """
    plain = dataclasses.replace(config, mesh=None)  # asdict copies, and devices cannot be copied
    fields = {k: v for k, v in dataclasses.asdict(plain).items() if k not in RUN_CHOICES}
    if config.shared_layers is not None:
        fields["shared_layers"] = [config.shared_layers.start, config.shared_layers.stop]
    return fields | {"rope_type": type(config.rope).__name__}
