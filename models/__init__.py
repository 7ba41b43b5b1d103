"""A small library of language models: `models.load(source)` gives a LanguageModel."""

import dataclasses
import difflib
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import platformdirs

from models import config as config_lib
from models import identity, sharding, weights
from models.config import ModelConfig
from models.families import llama, qwen
from models.sources import demo_models, gguf, hub, random_models
from models.tokenizer import Tokenizer
from models.tokenizer import load as load_tokenizer
from models.transformer import Transformer

CONFIGS: dict[str, ModelConfig] = llama.CONFIGS | qwen.CONFIGS


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A decoder ready to run: `module.apply({"params": params}, …, method="embed")` and so on."""

    name: str
    config: ModelConfig
    module: Transformer
    params: Any
    tokenizer: Tokenizer | None  # None where the folder has none
    fingerprint: str  # of config and source files; the same in every dtype

    @property
    def dtype(self):
        return self.params["embedding"].dtype

    @property
    def num_devices(self) -> int:
        """That one copy of it lies on: those that work on a request."""
        mesh = self.config.mesh
        return mesh.size // sharding.num_replicas(mesh) if mesh else 1

    def check_tokenizer(self) -> None:
        """Raises ValueError for a model that came without a tokenizer."""
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} came without a tokenizer: it cannot read texts. What it costs to run "
                "launch.cost measures."
            )

    def check_length(self, positions: int) -> None:
        """Raises ValueError for a sequence that is longer than the model's context."""
        if positions > self.config.max_positions:
            raise ValueError(
                f"The request spans {positions} positions; the context of {self.name} is "
                f"{self.config.max_positions}. Use fewer or shorter documents, or a model with a "
                "longer context."
            )


def default_cache_dir() -> pathlib.Path:
    """Where downloads and conversions are kept: the user's cache folder."""
    return platformdirs.user_cache_path("kvpacket_jax") / "models"


def check_reads_text(source: str) -> None:
    """Raises ValueError for a source that has no tokenizer, before its weights are made."""
    if str(source).startswith(random_models.PREFIX):
        raise ValueError(
            f"{source} is a shape with random weights and no tokenizer: it cannot read texts. What "
            "it costs to run launch.cost measures."
        )


def load(
    source: str,
    dtype: str = "auto",
    cache_dir: str | pathlib.Path | None = None,
    mesh: str | jax.sharding.Mesh | None = None,
    **run_choices,
) -> LanguageModel:
    """Loads a model with its tokenizer.

    Args:
      source: a demo model's name (`demo_models.DEMO_MODELS`), a local Hugging Face folder, a
        `.gguf` file, a Hugging Face hub id ("owner/name"), or "random:" and a name of `CONFIGS`:
        that shape with random weights and no tokenizer, to measure costs (random_models.py).
      dtype: "float32", "bfloat16", or "auto" (`fastest_dtype`).
      cache_dir: where demo models and conversions of GGUF are kept.
      mesh: the devices it lies on, "data:2,model:4" or one made before (sharding.py); one device
        if None. Each tensor is placed by its rule as it is read.
      **run_choices: fields of ModelConfig that say how to run (scan_layers, remat, query_block).

    Raises:
      ValueError, FileNotFoundError, ConnectionError: say what was found and what would do.
    """
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"dtype {dtype!r} is not one of auto, float32, bfloat16.")
    dtype = fastest_dtype() if dtype == "auto" else dtype
    if str(source).startswith(random_models.PREFIX):
        shape = random_models.find(source, CONFIGS)
        config = _on(dataclasses.replace(shape, **run_choices), mesh)
        params = random_models.params(config, jnp.dtype(dtype))
        name = random_models.fingerprint(config)
        return LanguageModel(source, config, Transformer(config), params, None, name)
    cache_dir = pathlib.Path(cache_dir) if cache_dir else default_cache_dir()
    folder = find(source, dtype, cache_dir)
    hf = folder / "config.json"
    if not hf.exists():
        raise FileNotFoundError(f"{folder} has no config.json: not a Hugging Face model folder.")
    config = _on(dataclasses.replace(_read_config(hf), **run_choices), mesh)
    tokenizer = load_tokenizer(folder) if (folder / "tokenizer.json").exists() else None
    return LanguageModel(
        name=str(source),
        config=config,
        module=Transformer(config),
        params=weights.load_params(folder, config, jnp.dtype(dtype)),
        tokenizer=tokenizer,
        fingerprint=identity.model_fingerprint(config, folder, cache_dir),
    )


def _on(config: ModelConfig, mesh: str | jax.sharding.Mesh | None) -> ModelConfig:
    made = sharding.make_mesh(mesh, config) if isinstance(mesh, str) else mesh
    return dataclasses.replace(config, mesh=made)


def on_row(model: LanguageModel, row: jax.sharding.Mesh) -> LanguageModel:
    """A model on one of the copies of its mesh (`sharding.rows`); no array is copied."""
    config = dataclasses.replace(model.config, mesh=row)
    params = sharding.on_row(model.params, row)
    return dataclasses.replace(model, config=config, module=Transformer(config), params=params)


def load_reader(
    source: str, dtype: str = "auto", cache_dir=None, mesh=None, **run_choices
) -> LanguageModel:
    """`load` for programs that need text; ValueError for a model without a tokenizer."""
    check_reads_text(source)
    model = load(source, dtype, cache_dir, mesh, **run_choices)
    model.check_tokenizer()
    return model


def shape(source: str) -> ModelConfig:
    """The constants of "random:NAME" or of a folder with a config.json; no weights are read."""
    if str(source).startswith(random_models.PREFIX):
        return random_models.find(source, CONFIGS)
    hf = pathlib.Path(source).expanduser() / "config.json"
    if not hf.exists():
        raise ValueError(
            f"{source!r} is neither random:NAME ({', '.join(CONFIGS)}) nor a folder with a "
            "config.json, which is all that a shape is read from."
        )
    return _read_config(hf)


def _read_config(hf: pathlib.Path) -> ModelConfig:
    try:
        return config_lib.from_hf(json.loads(hf.read_text()), str(hf))
    except json.JSONDecodeError as error:
        raise ValueError(f"{hf} is not JSON ({error}): fetch it again.") from error


def find(source: str, dtype: str, cache_dir: pathlib.Path) -> pathlib.Path:
    """The Hugging Face folder of a source, fetched and converted where needed."""
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
    close = difflib.get_close_matches(source, demo_models.DEMO_MODELS, n=3, cutoff=0.4)
    raise ValueError(
        f"There is no model {source!r}"
        + (f" (did you mean {' or '.join(close)}?)" if close else "")
        + f". Demo models: {', '.join(demo_models.DEMO_MODELS)}. Otherwise give a folder, a .gguf "
        "file, a Hugging Face hub id (owner/name) or random:NAME for random weights."
    )


def _converted(path: pathlib.Path, name: str, dtype: str, cache_dir: pathlib.Path) -> pathlib.Path:
    # Once for each dtype: weights rounded to bfloat16 would fail a float32 user, silently.
    folder = cache_dir / f"{name}-{dtype}"
    if not folder.is_dir():
        gguf.convert(path, folder, dtype)
    return folder


def fastest_dtype() -> str:
    """bfloat16 on accelerators and on CPUs with instructions for it, else float32.

    Not measured: caches of one dtype are not those of another, and a busy machine might choose
    otherwise the next time.
    """
    cpuinfo = pathlib.Path("/proc/cpuinfo")  # of Linux; other systems have float32
    on_cpu = jax.default_backend() == "cpu"
    flags = cpuinfo.read_text() if on_cpu and cpuinfo.exists() else ""
    native = not on_cpu or re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags)
    return "bfloat16" if native else "float32"
