"""A model's config from a Hugging Face `config.json`."""

import json
import pathlib
from typing import Any

from models import rope
from models.config import ModelConfig
from models.families import FAMILIES


def read(path: pathlib.Path) -> ModelConfig:
    """The config in the file `path`. Raises ValueError if it is not JSON, and as `from_hf`."""
    try:
        return from_hf(json.loads(path.read_text()), str(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch it again.") from error


def from_hf(hf: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """Reads the dict of a Hugging Face `config.json`.

    Both spellings of RoPE are understood: `rope_theta` with `rope_scaling`, and `rope_parameters`.
    Raises ValueError, naming `source`, for what this library does not run.
    """
    name = hf.get("model_type")
    if name not in FAMILIES:
        raise ValueError(
            f"{source}: model_type {name!r} is not supported. Supported: {', '.join(FAMILIES)}."
        )
    family = FAMILIES[name]
    if hf.get("use_sliding_window"):
        raise ValueError(
            f"{source}: use_sliding_window is true, but layers here attend to all positions. "
            "Set it to false if the model may run so (Qwen2.5 and Qwen3 may)."
        )
    if hf.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{source}: hidden_act {hf['hidden_act']!r} is not supported, only silu.")
    # A family with biases has them whatever the key says; the others must not ask for them.
    if (hf.get("attention_bias") and not family.qkv_bias) or hf.get("mlp_bias"):
        raise ValueError(f"{source}: attention_bias and mlp_bias are not supported for {name}.")

    def need(key: str) -> Any:
        if hf.get(key) is None:
            raise ValueError(
                f"{source}: the key {key!r} is missing; it has {', '.join(sorted(hf))}."
            )
        return hf[key]

    num_heads = need("num_attention_heads")
    parsed_rope = rope.from_hf(hf, source)
    return ModelConfig(
        family=name,
        vocab_size=need("vocab_size"),
        dim=need("hidden_size"),
        num_layers=need("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=need("num_key_value_heads"),
        head_dim=hf.get("head_dim") or need("hidden_size") // num_heads,
        mlp_dim=need("intermediate_size"),
        norm_eps=need("rms_norm_eps"),
        max_positions=rope.max_positions(parsed_rope, need("max_position_embeddings")),
        # transformers would read its absence as false, but every checkpoint of them states it.
        tie_embeddings=need("tie_word_embeddings"),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        rope=parsed_rope,
    )
