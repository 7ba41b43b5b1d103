"""Where models come from: finds, fetches and converts them to Hugging Face folders."""

import pathlib
import re

import platformdirs

from models import identity
from models.names import did_you_mean
from models.sources import demo_models, gguf, hub, random_models


def default_cache_dir() -> pathlib.Path:
    """Where downloads and conversions are stored: the user's cache folder."""
    return platformdirs.user_cache_path("kvpacket_jax") / "models"


def check_reads_text(source: str) -> None:
    """Raises ValueError for a source that has no tokenizer, before its weights are made."""
    if random_models.is_random(source):
        raise ValueError(
            f"{source} is a shape with random weights and no tokenizer: it cannot read texts. What "
            "it costs to run launch.cost measures."
        )


def find(source: str, dtype: str, cache_dir: pathlib.Path) -> pathlib.Path:
    """The Hugging Face folder of a source, fetched and converted where needed.

    Args:
      source: a demo model's name, a folder, a `.gguf` file or a hub id ("owner/name").
      dtype: "float32" or "bfloat16", of a conversion.
      cache_dir: where demo models and conversions are stored.

    Raises:
      ValueError: no such source, with those that are close; or as `gguf.convert` and
        `demo_models.fetch`.
      FileNotFoundError: no such `.gguf` file. ConnectionError: the hub cannot be reached.
    """
    path = pathlib.Path(source).expanduser()
    if source in demo_models.DEMO_MODELS:
        gguf_path = demo_models.fetch(source, cache_dir)
        name = f"{source}-{demo_models.DEMO_MODELS[source].sha256[:12]}"
        return _converted(gguf_path, name, dtype, cache_dir)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        name = f"{path.stem}-{identity.file_digest(path, cache_dir)[:12]}"
        return _converted(path, name, dtype, cache_dir)
    if path.is_dir():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return hub.fetch(source)
    close = did_you_mean(source, demo_models.DEMO_MODELS, count=3, cutoff=0.4)
    raise ValueError(
        f"There is no model {source!r}{close}. Demo "
        f"models: {', '.join(demo_models.DEMO_MODELS)}. Otherwise give a folder, a .gguf file, a "
        "Hugging Face hub id (owner/name) or random:NAME for random weights."
    )


def _converted(path: pathlib.Path, name: str, dtype: str, cache_dir: pathlib.Path) -> pathlib.Path:
    # Once for each dtype: weights rounded to bfloat16 would fail a float32 user, silently.
    folder = cache_dir / f"{name}-{dtype}"
    if not folder.is_dir():
        gguf.convert(path, folder, dtype)
    return folder
