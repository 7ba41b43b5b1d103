"""A model's config from a Hugging Face `config.json`."""

import pathlib
from typing import Any

import numpy as np

from models import rope
from models.config import ModelConfig
from models.families import FAMILIES
from models.foreign import json_file
from models.foreign.settings import CONFIG

# Several times what the largest models have. What is larger is damage, and would be allocated.
LIMITS = {
    "vocab_size": 2**22,
    "hidden_size": 2**17,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**11,
    "num_key_value_heads": 2**11,
    "head_dim": 2**9,
    "intermediate_size": 2**20,
    "max_position_embeddings": rope.MOST_POSITIONS,
}


def read(path: pathlib.Path) -> ModelConfig:
    """The config in the file `path`. Raises ValueError if it is not JSON, and as `from_hf`."""
    return from_hf(json_file.read_object(path), str(path))


def from_hf(hf: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """Reads the dict of a Hugging Face `config.json`.

    Both spellings of RoPE are understood: `rope_theta` with `rope_scaling`, and `rope_parameters`.
    Raises ValueError, naming `source`, for what this library does not run or does not know.
    """
    name = hf.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        shown = repr(name) if isinstance(name, str) and len(name) < 60 else json_file.brief(name)
        raise ValueError(
            f"{source}: model_type {shown} is not supported. Supported: {', '.join(FAMILIES)}."
        )
    _check_settings(hf, source)

    def need(key: str) -> Any:
        if hf.get(key) is None:
            raise ValueError(
                f"{source}: the key {key!r} is missing; it has {json_file.names(sorted(hf), 40)}."
            )
        return hf[key]

    def size(key: str) -> int:
        return json_file.integer(source, key, need(key), 1, LIMITS[key])

    family, num_heads, dim = FAMILIES[name], size("num_attention_heads"), size("hidden_size")
    head_dim = dim // num_heads
    if hf.get("head_dim") is not None or not 1 <= head_dim <= LIMITS["head_dim"]:
        head_dim = size("head_dim")
    parsed_rope = rope.from_hf(hf, source)
    config = ModelConfig(
        family=name,
        vocab_size=size("vocab_size"),
        dim=dim,
        num_layers=size("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=size("num_key_value_heads"),
        head_dim=head_dim,
        mlp_dim=size("intermediate_size"),
        norm_eps=json_file.number(source, "rms_norm_eps", need("rms_norm_eps"), 1),
        max_positions=rope.max_positions(parsed_rope, size("max_position_embeddings")),
        # transformers would read its absence as false, but every checkpoint of them states it.
        tie_embeddings=json_file.flag(source, "tie_word_embeddings", need("tie_word_embeddings")),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        rope=parsed_rope,
    )
    if not np.isfinite(rope.frequencies(parsed_rope, head_dim)).all():
        raise ValueError(f"{source}: the frequencies of {parsed_rope} are not finite.")
    return config


def _check_settings(hf: dict[str, Any], source: str) -> None:
    """Raises ValueError for settings under which a model of these families runs otherwise."""
    name = hf["model_type"]
    for key in ("quantization_config", "quantization"):
        if hf.get(key):
            raise ValueError(
                f"{source}: {key} is {json_file.brief(hf[key])}: quantised weights are read from "
                "GGUF only. Use the model in full precision, or as GGUF."
            )
    for key in ("use_sliding_window", "attention_bias", "mlp_bias"):
        if hf.get(key) is not None:
            json_file.flag(source, key, hf[key])
    if hf.get("use_sliding_window"):
        raise ValueError(
            f"{source}: use_sliding_window is true, but layers here attend to all positions. "
            "Set it to false if the model may run so (Qwen2.5 and Qwen3 may)."
        )
    layer_types = hf.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or set(map(str, layer_types)) != {"full_attention"}
    ):
        raise ValueError(
            f"{source}: layer_types is {json_file.brief(layer_types)}; layers here are all "
            "'full_attention'."
        )
    # A family that has no switch for it has the window wherever its length is given.
    window, has_switch = hf.get("sliding_window"), "use_sliding_window" in FAMILIES[name].hf_config
    if window is not None and not has_switch and layer_types is None:
        longest = hf.get("max_position_embeddings")
        if not isinstance(longest, int) or not isinstance(window, int) or window < longest:
            raise ValueError(
                f"{source}: sliding_window is {json_file.brief(window)}, but layers here attend to "
                "all positions. Remove it if the model runs without it."
            )
    if hf.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{source}: hidden_act {hf['hidden_act']!r} is not supported, only silu.")
    # A family with biases has them whatever the key says; the others must not ask for them.
    if (hf.get("attention_bias") and not FAMILIES[name].qkv_bias) or hf.get("mlp_bias"):
        raise ValueError(f"{source}: attention_bias and mlp_bias are not supported for {name}.")
    CONFIG.check(source, hf)
