"""Where models come from: finds, fetches and converts them to Hugging Face folders."""

import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import platformdirs

from models.foreign import digests, gguf_file
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
      source: a demo model's name, a folder, a GGUF file of any name (or a folder with one), or a
        hub id ("owner/name").
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
        return _make(folder, sha256, dtype, lambda: demo_models.fetch(source, cache_dir))
    if path.is_dir():
        if (path / "config.json").exists() or not (inside := _gguf_files(path)):
            return path
        if len(inside) > 1:
            raise ValueError(
                f"{path} has several GGUF files: {', '.join(p.name for p in inside[:5])}. Give one "
                "of them as the model."
            )
        path = inside[0]
    if path.exists():
        return _converted(path, dtype, cache_dir)
    if path.suffix.lower() == ".gguf":
        raise FileNotFoundError(f"There is no file {path}.")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return hub.fetch(source)
    close = did_you_mean(source, demo_models.DEMO_MODELS, count=3, cutoff=0.4)
    raise ValueError(
        f"There is no model {source!r}{close}. Demo "
        f"models: {', '.join(demo_models.DEMO_MODELS)}. Otherwise give a folder, a .gguf file, a "
        "Hugging Face hub id (owner/name) or random:NAME for random weights."
    )


def _gguf_files(folder: pathlib.Path) -> list[pathlib.Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".gguf")
    return [p for p in files if p.is_file()]


def _converted(path: pathlib.Path, dtype: str, cache_dir: pathlib.Path) -> pathlib.Path:
    """The folder that a GGUF file of any name was converted to. ValueError for another file."""
    if not gguf_file.is_gguf(path):
        raise ValueError(
            f"{path} is no model: a file must be GGUF, which it is not by its first bytes. Give a "
            "folder with config.json and safetensors for another model."
        )
    # Once for each dtype: weights rounded to bfloat16 would fail a float32 user, silently.
    name = path.stem if path.suffix.lower() == ".gguf" else path.name
    sha256 = digests.of_file(path)
    return _make(cache_dir / f"{name}-{sha256[:12]}-{dtype}", sha256, dtype, lambda: path)


def conversion(folder: pathlib.Path, cache_dir: pathlib.Path) -> dict[str, Any] | None:
    """What a folder of `cache_dir` was converted from; None for any other folder.

    Only what this program converted itself is known by its source: a folder from elsewhere may say
    what it likes. Raises ChangedError if the files are not those that were written.
    """
    if folder.resolve().parent != cache_dir.resolve():
        return None
    recorded = converted.note(folder)
    if recorded:
        converted.check_small(folder, recorded)
    return recorded


def remove_changed(folder: pathlib.Path, error: converted.ChangedError) -> None:
    """Deletes a conversion that `find` is to make again, and says so."""
    print(f"{folder} is made again: {error.what}.", file=sys.stderr)
    converted.remove(folder)


def _make(
    folder: pathlib.Path, sha256: str, dtype: str, fetch: Callable[[], pathlib.Path]
) -> pathlib.Path:
    """Sees to it that `folder` holds the conversion of the GGUF file with this digest."""
    if folder.is_dir():
        try:
            recorded = conversion(folder, folder.parent)
            if recorded is None:
                raise converted.ChangedError(folder, f"{converted.NOTE} has gone")
            if (recorded["sha256"], recorded.get("dtype")) != (sha256, dtype):
                raise converted.ChangedError(folder, "it was made from another file or dtype")
            return folder
        except converted.ChangedError as error:
            remove_changed(folder, error)
    gguf.convert(fetch(), folder, dtype)
    return folder
