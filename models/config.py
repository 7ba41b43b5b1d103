"""ModelConfig: the constants of a decoder, read from a Hugging Face `config.json`."""

import dataclasses
from typing import Any

import jax

from models import rope


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The constants of one decoder. None has a default: a forgotten one must not go unnoticed.

    The fields below the line are choices of how to run it, not properties of the weights.
    """

    family: str  # "llama", "qwen2" or "qwen3"
    vocab_size: int  # V
    dim: int  # D
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    mlp_dim: int  # M
    norm_eps: float
    max_positions: int
    tie_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    rope: rope.Rope
    # ---
    scan_layers: bool = False  # one stacked array for all layers, walked by lax.scan
    remat: bool = False  # recompute a layer's activations in the backward pass
    query_block: int = 128  # rows of attention computed at once; bounds its memory
    mesh: jax.sharding.Mesh | None = None  # the devices it lies on (sharding.py); None: one

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads "
                "evenly: num_attention_heads must be a multiple of num_key_value_heads."
            )
        if self.head_dim % 2:
            raise ValueError(f"RoPE rotates pairs: head_dim must be even, found {self.head_dim}.")

    @property
    def num_groups(self) -> int:
        """G: query heads for each key/value head."""
        return self.num_heads // self.num_kv_heads


# model_type -> what the family adds to the common decoder.
FAMILIES = {
    "llama": {"qkv_bias": False, "qk_norm": False},
    "qwen2": {"qkv_bias": True, "qk_norm": False},
    "qwen3": {"qkv_bias": False, "qk_norm": True},
}


def from_hf(hf: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """Reads the dict of a Hugging Face `config.json`.

    Both spellings of RoPE are understood: `rope_theta` with `rope_scaling`, and `rope_parameters`.
    Raises ValueError, naming `source`, for what this library does not run.
    """
    family = hf.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"{source}: model_type {family!r} is not supported. Supported: {', '.join(FAMILIES)}."
        )
    if hf.get("use_sliding_window"):
        raise ValueError(
            f"{source}: use_sliding_window is true, but every layer here attends to all positions. "
            "Set it to false if the model may run so (Qwen2.5 and Qwen3 may)."
        )
    if hf.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{source}: hidden_act {hf['hidden_act']!r} is not supported, only silu.")
    traits = FAMILIES[family]
    # The classes of qwen2 have their biases always and the key says nothing; the others must agree.
    if (family != "qwen2" and hf.get("attention_bias", False)) or hf.get("mlp_bias", False):
        raise ValueError(f"{source}: attention_bias and mlp_bias are not supported for {family}.")

    def need(key: str) -> Any:
        if hf.get(key) is None:
            raise ValueError(
                f"{source}: the key {key!r} is missing; it has {', '.join(sorted(hf))}."
            )
        return hf[key]

    num_heads = need("num_attention_heads")
    parsed_rope = rope.from_hf(hf, source)
    return ModelConfig(
        family=family,
        vocab_size=need("vocab_size"),
        dim=need("hidden_size"),
        num_layers=need("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=need("num_key_value_heads"),
        head_dim=hf.get("head_dim") or need("hidden_size") // num_heads,
        mlp_dim=need("intermediate_size"),
        norm_eps=need("rms_norm_eps"),
        max_positions=rope.max_positions(parsed_rope, need("max_position_embeddings")),
        # Absent means tied in none of the three families' classes but written by all of them.
        tie_embeddings=need("tie_word_embeddings"),
        rope=parsed_rope,
        **traits,
    )
