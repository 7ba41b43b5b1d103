"""A small library of language models: `models.load(source)` gives a LanguageModel."""

import dataclasses
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp

from models import identity, sharding
from models.checkpoint import hf_config, weights
from models.checkpoint.tokenizer import Tokenizer
from models.checkpoint.tokenizer import load as load_tokenizer
from models.config import ModelConfig
from models.families import CONFIGS
from models.precision import fastest_dtype
from models.sources import (
    check_reads_text,
    conversion,
    converted,
    default_cache_dir,
    find,
    random_models,
    remove_changed,
)
from models.transformer import Transformer

__all__ = [
    "CONFIGS",
    "LanguageModel",
    "check_reads_text",
    "default_cache_dir",
    "fastest_dtype",
    "find",
    "load",
    "load_text_model",
    "parse_layers",
    "shape",
]


SHARED = "+shared_layers="  # in a model's name: the layers follow


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A decoder ready to run, inside `jax.jit`: `module.bind({"params": params}).embed(ids)`, …"""

    name: str
    config: ModelConfig
    module: Transformer
    params: Any
    tokenizer: Tokenizer | None  # None if its source has none
    fingerprint: str  # of config and source files' bytes; the same in every dtype

    @property
    def dtype(self):
        return self.params["embedding"].dtype

    @property
    def num_devices(self) -> int:
        """The devices of one replica: those that work on a request."""
        mesh = self.config.mesh
        return mesh.size // sharding.num_replicas(mesh) if mesh else 1

    def check_tokenizer(self) -> None:
        """Raises ValueError for a model without a tokenizer."""
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} came without a tokenizer: it cannot read texts. What it costs to run "
                "launch.cost measures."
            )

    def check_length(self, positions: int, what: str = "The request", detail: str = "") -> None:
        """Raises ValueError for a sequence that is longer than the model's context.

        Args:
          what: the sequence, for the message; detail: ", 620 of a primer", say.
        """
        if positions > self.config.max_positions:
            raise ValueError(
                f"{what} spans {positions} positions{detail}; the context of {self.name} is "
                f"{self.config.max_positions}. Use fewer or shorter documents, or a model with a "
                "longer context."
            )


def load(
    source: str,
    dtype: str = "auto",
    cache_dir: str | pathlib.Path | None = None,
    mesh: str | jax.sharding.Mesh | None = None,
    shared_layers: str = "",
    **run_choices,
) -> LanguageModel:
    """Loads a model with its tokenizer.

    Args:
      source: a demo model's name (`demo_models.DEMO_MODELS`), a local Hugging Face folder, a
        GGUF file, a Hugging Face hub id ("owner/name"), or "random:" and a name of `CONFIGS`:
        that shape with random weights and no tokenizer, to measure costs (random_models.py).
      dtype: "float32", "bfloat16", or "auto" (`fastest_dtype`).
      cache_dir: where demo models and conversions of GGUF are stored; `default_cache_dir` if None.
      mesh: the devices to put it on, "data:2,model:4" or a Mesh (sharding.py); one device if None.
        Each tensor is placed by its rule as it is read.
      shared_layers: "23:27", the layers from 23 to 26 take the attention weights of layer 22 and
        cache no keys (Shared Attention, arXiv 2407.12866); "" for none. The weights were not
        trained so: it is another model, with a name and a fingerprint of its own.
      **run_choices: fields of ModelConfig that say how to run (scan_layers, remat, query_block,
        key_block, paged_kernel).

    Raises:
      ValueError: an unknown source, dtype, family or mesh, or files that do not fit together.
      FileNotFoundError, ConnectionError: a file that is missing, a hub that cannot be reached.
    """
    return _load(source, dtype, cache_dir, mesh, shared_layers, run_choices, reads_text=False)


def load_text_model(
    source: str,
    dtype: str = "auto",
    cache_dir: str | pathlib.Path | None = None,
    mesh: str | jax.sharding.Mesh | None = None,
    shared_layers: str = "",
    **run_choices,
) -> LanguageModel:
    """`load` for programs that answer from texts, with one replica of a model that has a tokenizer.

    Raises ValueError or FileNotFoundError for others, before the weights are read.
    """
    check_reads_text(source)
    if isinstance(mesh, str):
        sharding.check_one_replica(mesh)
    return _load(source, dtype, cache_dir, mesh, shared_layers, run_choices, reads_text=True)


def parse_layers(text: str) -> range | None:
    """The layers of "23:27"; ValueError for anything else but ""."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise ValueError(
            f"shared_layers {text!r} is not a range of layers, as 23:27 for those from 23 to 26."
        )
    return range(*map(int, match.groups()))


def _name(source: str, config: ModelConfig) -> str:
    shared = config.shared_layers
    return f"{source}{SHARED}{shared.start}:{shared.stop}" if shared else str(source)


def _load(
    source, dtype, cache_dir, mesh, shared_layers: str, run_choices, reads_text: bool
) -> LanguageModel:
    # Before anything is fetched or read.
    run_choices = run_choices | {"shared_layers": parse_layers(shared_layers)}
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"dtype {dtype!r} is not one of auto, float32, bfloat16.")
    dtype = jnp.dtype(fastest_dtype() if dtype == "auto" else dtype)
    if random_models.is_random(source):
        config = _with_choices(random_models.shape(source), mesh, run_choices)
        params = random_models.params(config, dtype)
        fingerprint = random_models.fingerprint(config)
        name = _name(source, config)
        return LanguageModel(name, config, Transformer(config), params, None, fingerprint)
    cache_dir = pathlib.Path(cache_dir).expanduser() if cache_dir else default_cache_dir()

    def read() -> LanguageModel:
        folder = find(source, str(dtype), cache_dir)
        config_file = folder / "config.json"
        if not config_file.exists():
            raise FileNotFoundError(
                f"{folder} has no config.json: not a Hugging Face model folder."
            )
        config = _with_choices(hf_config.read(config_file), mesh, run_choices)
        tokenizer = None
        if reads_text or (folder / "tokenizer.json").exists():
            tokenizer = load_tokenizer(folder)
            _check_vocabulary(folder, tokenizer, config)
        params, fingerprint = _read_weights(folder, cache_dir, config, dtype)
        return LanguageModel(
            _name(source, config), config, Transformer(config), params, tokenizer, fingerprint
        )

    try:
        return read()
    except converted.ChangedError as error:
        if error.folder == pathlib.Path(source).expanduser():
            raise
        remove_changed(error.folder, error)
    return read()


def _read_weights(folder: pathlib.Path, cache_dir: pathlib.Path, config: ModelConfig, dtype):
    """The parameters and the fingerprint of a Hugging Face folder.

    ChangedError for a conversion whose files are not those that were written.
    """
    source = conversion(folder, cache_dir)
    try:
        params, sha256s = weights.load_params(folder, config, dtype)
    except ValueError:
        if source:
            converted.check_weights(folder, source)
        raise
    if source:
        converted.check_weights(folder, source, sha256s)
        # Rounded to bfloat16, they are not what the source is in float32.
        if jnp.dtype(source.get("dtype", dtype)).itemsize >= dtype.itemsize:
            return params, identity.model_fingerprint(config, [source["sha256"]])
    return params, identity.model_fingerprint(config, [sha256s[p] for p in sorted(sha256s)])


def _check_vocabulary(folder: pathlib.Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raises ValueError for tokens, or ends of an answer, that the model cannot read or say."""
    largest = max(tokenizer.vocab_size - 1, *tokenizer.control_ids, *tokenizer.stop_ids, 0)
    if largest >= config.vocab_size:
        raise ValueError(
            f"{folder}: tokenizer.json, or an eos_token_id, has a token {largest:,}; the "
            f"embeddings have {config.vocab_size:,} rows. Tokenizer and weights are of different "
            "models."
        )


def _with_choices(
    config: ModelConfig, mesh: str | jax.sharding.Mesh | None, run_choices: dict[str, Any]
) -> ModelConfig:
    mesh = sharding.make_mesh(mesh, config) if isinstance(mesh, str) else mesh
    # On a CPU half of a long context's time, for what no row sees is skipped. Smaller blocks fit
    # caches better and lose more by their number: 48 rows over 4,096 slots took a third longer in
    # blocks of 512. A GPU would launch thousands of small kernels.
    key_block = {"key_block": 2048 if jax.default_backend() == "cpu" else 0}
    return dataclasses.replace(config, mesh=mesh, **(key_block | run_choices))


def shape(source: str) -> ModelConfig:
    """The constants of "random:NAME" or of a folder with a config.json; no weights are read.

    Raises ValueError for any other source.
    """
    if random_models.is_random(source):
        return random_models.shape(source)
    config_file = pathlib.Path(source).expanduser() / "config.json"
    if not config_file.exists():
        raise ValueError(
            f"{source!r} is neither random:NAME ({', '.join(CONFIGS)}) nor a folder with a "
            "config.json, which is all that a shape is read from."
        )
    return hf_config.read(config_file)
