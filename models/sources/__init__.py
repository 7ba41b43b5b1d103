"""Where models come from: finds, fetches and converts them to Hugging Face folders."""

import pathlib
import re
import sys

import platformdirs

from models.foreign import digests
from models.names import did_you_mean
from models.sources import converted, demo_models, gguf, hub, random_models


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
        sha256 = demo_models.DEMO_MODELS[source].sha256
        folder = cache_dir / f"{source}-{sha256[:12]}-{dtype}"
        if not _is_whole(folder):
            gguf.convert(demo_models.fetch(source, cache_dir), folder, dtype)
        return folder
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        # Once for each dtype: weights rounded to bfloat16 would fail a float32 user, silently.
        folder = cache_dir / f"{path.stem}-{digests.of_file(path)[:12]}-{dtype}"
        if not _is_whole(folder):
            gguf.convert(path, folder, dtype)
        return folder
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


def is_conversion(folder: pathlib.Path, source: str) -> bool:
    """Whether `find` made the folder of a source itself, so that it can make it again."""
    return folder != pathlib.Path(source).expanduser() and (folder / converted.NOTE).exists()


def _is_whole(folder: pathlib.Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        recorded = converted.note(folder)
        if recorded is None:
            raise converted.ChangedError(folder, f"{converted.NOTE} has gone")
        converted.check_small(folder, recorded)
    except converted.ChangedError as error:
        remove_changed(folder, error)
        return False
    return True


def remove_changed(folder: pathlib.Path, error: converted.ChangedError) -> None:
    """Deletes a conversion that `find` is to make again, and says so."""
    print(f"{error.what} since the conversion: {folder} is made again.", file=sys.stderr)
    converted.remove(folder)
