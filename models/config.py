"""ModelConfig: the constants of a decoder, and the choices of how to run it."""

import dataclasses

import jax

from models import rope


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The constants of one decoder, without defaults, so that none can be forgotten.

    The fields after "# ---" are choices of how to run it, not properties of the weights.
    """

    family: str  # one of families.FAMILIES
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
    mesh: jax.sharding.Mesh | None = None  # its devices (sharding.py); None: one

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
