"""What the metadata of a GGUF file say of the model, as a Hugging Face config and names."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from models import rope
from models.checkpoint import hf_config, tokenizer, weights
from models.families import FAMILIES, MODEL_TENSORS, Family, llama
from models.foreign import json_file
from models.foreign.gguf_file import File
from models.foreign.settings import GGUF_MODEL

SOURCE = "the GGUF metadata"


def _family(file: File) -> tuple[str, Family]:
    name = _value(file, "general.architecture")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"the GGUF architecture {name!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    return name, FAMILIES[name]


def hf_config_of(file: File, dtype: str) -> dict[str, Any]:
    """The content of a Hugging Face config.json.

    Raises ValueError for a part of a model, for metadata that are missing, not understood or
    beyond all limits.
    """
    _check_whole(file)
    name, family = _family(file)
    prefix = f"{name}."
    settings = {k.removeprefix(prefix): v for k, v in file.fields.items() if k.startswith(prefix)}
    GGUF_MODEL.check(SOURCE, settings, prefix)

    def get(key: str) -> Any:
        return _value(file, prefix + key)

    def size(key: str, hf_name: str) -> int:
        return json_file.integer(SOURCE, prefix + key, get(key), 1, hf_config.LIMITS[hf_name])

    def number(key: str) -> float:
        return _shortest(json_file.number(SOURCE, prefix + key, get(key)))

    tensors = {t.name: t for t in file.tensors}
    embedding = tensors.get(MODEL_TENSORS["embedding"].gguf)
    if embedding is None:
        raise ValueError(f"it lacks {MODEL_TENSORS['embedding'].gguf}, the embeddings")
    config = {
        "architectures": [family.hf_class],
        "model_type": name,
        "hidden_act": "silu",
        "hidden_size": size("embedding_length", "hidden_size"),
        "intermediate_size": size("feed_forward_length", "intermediate_size"),
        "num_hidden_layers": size("block_count", "num_hidden_layers"),
        "num_attention_heads": size("attention.head_count", "num_attention_heads"),
        "num_key_value_heads": size("attention.head_count_kv", "num_key_value_heads"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "rope_theta": number("rope.freq_base"),
        "rope_scaling": _rope_scaling(get, number, settings),
        "max_position_embeddings": size("context_length", "max_position_embeddings"),
        # The embeddings may have more rows than the tokenizer has tokens.
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": MODEL_TENSORS["output"].gguf not in tensors,
        "torch_dtype": dtype,
        **family.hf_config,
    }
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    if "attention.key_length" in settings:
        config["head_dim"] = head_dim = size("attention.key_length", "head_dim")
    _check_heads(settings, prefix, head_dim)
    if (factors := tensors.get(llama.GGUF_ROPE_FACTORS)) is not None:
        if config["rope_scaling"]:
            raise ValueError(
                f"{factors.name} and {prefix}rope.scaling are both given; expected one"
            )
        config["rope_scaling"] = _llama3_scaling(factors.data, config["rope_theta"], head_dim)
    if (bos := tokenizer.gguf_token_id(file, "bos")) is not None:
        config["bos_token_id"] = bos
    if stops := tokenizer.gguf_stop_ids(file):
        config["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    hf_config.from_hf(config, SOURCE)
    return config


def _check_heads(settings: dict[str, Any], prefix: str, head_dim: int) -> None:
    for key in ("attention.value_length", "rope.dimension_count"):
        if key in settings and settings[key] != head_dim:
            raise ValueError(
                f"the GGUF metadata set {prefix}{key} to {settings[key]}, but heads have "
                f"{head_dim} dimensions; values of another width and partial RoPE are not supported"
            )


def hf_names(file: File, config: dict[str, Any]) -> dict[str, str]:
    """GGUF name -> Hugging Face name of every weight.

    Raises ValueError for one that is missing, unknown, or not of the shape that `config` asks for.
    """
    name, family = _family(file)
    names = {tensor.gguf: tensor.hf for tensor in MODEL_TENSORS.values()}
    for i in range(config["num_hidden_layers"]):
        for tensor in family.layer_tensors.values():
            names[tensor.gguf.format(i=i)] = tensor.hf.format(i=i)
    in_file = {t.name for t in file.tensors}
    output = MODEL_TENSORS["output"].gguf  # absent where the embeddings are the output too
    missing = sorted(names.keys() - in_file - {output})
    unexpected = sorted(in_file - names.keys() - {llama.GGUF_ROPE_FACTORS})
    if missing or unexpected:
        raise ValueError(
            f"the tensors are not those of a {name} model: missing {_some(missing)}; "
            f"unexpected {_some(unexpected)}"
        )
    shapes = weights.hf_shapes(hf_config.from_hf(config, SOURCE))
    for t in file.tensors:
        if t.name in names and t.shape != shapes[names[t.name]]:
            raise ValueError(
                f"{t.name} has shape {list(t.shape)}, the metadata ask for "
                f"{list(shapes[names[t.name]])}"
            )
    return {name: hf for name, hf in names.items() if name in in_file}


def _check_whole(file: File) -> None:
    """Raises ValueError for one part of a model in several files, and for what is no model."""
    parts = file.fields.get("split.count")
    if parts not in (None, 0, 1):
        number = file.fields["split.no"] + 1 if "split.no" in file.fields else "one"
        raise ValueError(
            f"it is part {number} of {parts} of a split model: join them "
            "(llama-gguf-split --merge FIRST_PART WHOLE.gguf) and give the whole"
        )
    kind = file.fields.get("general.type")
    if kind not in (None, "model"):
        raise ValueError(f"it holds a GGUF {kind!r}, not a model")


def _value(file: File, key: str) -> Any:
    if key not in file.fields:
        short = [k for k in file.fields if not k.startswith("tokenizer.")]
        raise ValueError(f"the GGUF metadata lack {key}; they have {', '.join(short)}")
    return file.fields[key]


def _shortest(value: float) -> float:
    # GGUF stores float32: 1e-6 would come out as 9.999999974752427e-07.
    return float(str(np.float32(value)))


def _rope_scaling(
    get: Callable[[str], Any], number: Callable[[str], float], settings: dict[str, Any]
) -> dict[str, Any] | None:
    # A factor without a type is linear, as llama.cpp has it; 0 is none.
    factor = settings.get("rope.scaling.factor") or 1.0
    kind = settings.get("rope.scaling.type", "none" if factor == 1 else "linear")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ValueError(
            f"the RoPE scaling {kind!r} is not supported; supported: none, linear, yarn"
        )
    scaling = {"rope_type": kind, "factor": number("rope.scaling.factor")}
    if kind == "yarn":
        original = get("rope.scaling.original_context_length")
        scaling["original_max_position_embeddings"] = original
        for beta in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{beta}" in settings:
                scaling[beta] = number(f"rope.scaling.yarn_{beta}")
    return scaling


def _llama3_scaling(factors: np.ndarray, theta: float, head_dim: int) -> dict[str, Any]:
    """The llama3 rope_scaling whose frequencies are divided by `factors` `[head_dim / 2]`."""
    # GGUF stores the outcome, not the constants. All Llama 3.x share these except for the factor,
    # which is what the lowest frequency is divided by; whether they fit is checked below.
    scaled = dataclasses.replace(llama.ROPE_31, theta=theta, factor=float(factors.max()))
    plain = rope.frequencies(rope.Rope(theta), head_dim)
    expected = plain / rope.frequencies(scaled, head_dim)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise ValueError(
            f"{llama.GGUF_ROPE_FACTORS} does not hold the frequency scaling of Llama-3.1 or 3.2; "
            "use the model's safetensors (its Hugging Face hub id) instead"
        )
    return {
        "rope_type": "llama3",
        "factor": scaled.factor,
        "low_freq_factor": scaled.low_freq_factor,
        "high_freq_factor": scaled.high_freq_factor,
        "original_max_position_embeddings": scaled.original_max_positions,
    }


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more or "none"
