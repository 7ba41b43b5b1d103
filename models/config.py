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
    # Slots that such a block takes at once, without those that none of its rows sees; 0: all.
    key_block: int = 0
    mesh: jax.sharding.Mesh | None = None  # its devices (sharding.py); None: one
    paged_kernel: bool = False  # attention over pages by paged_kernel.py; for TPUs
    # Layers that take the attention weights of the layer before them and cache no keys. Another
    # model than its weights': part of the fingerprint (identity.py).
    shared_layers: range | None = None

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads "
                "evenly: num_attention_heads must be a multiple of num_key_value_heads."
            )
        if self.head_dim % 2:
            raise ValueError(f"RoPE rotates pairs: head_dim must be even, found {self.head_dim}.")
        if self.shared_layers is not None:
            self._check_shared(self.shared_layers)

    def _check_shared(self, shared: range) -> None:
        if shared.step != 1 or not 1 <= shared.start < shared.stop <= self.num_layers:
            raise ValueError(
                f"shared_layers {shared.start}:{shared.stop} must lie within 1:{self.num_layers}: "
                "they take the weights of the layer before them."
            )
        if self.scan_layers:
            raise ValueError(
                "shared_layers need scan_layers=False: what shared layers cache has another shape."
            )
        if self.paged_kernel:
            raise ValueError(
                "shared_layers need paged_kernel=False: the kernel keeps no attention weights to "
                "share."
            )

    @property
    def num_groups(self) -> int:
        """G: query heads for each key/value head."""
        return self.num_heads // self.num_kv_heads

    def shares(self, layer: int) -> bool:
        """Whether a layer takes the attention weights of the one before it."""
        return self.shared_layers is not None and layer in self.shared_layers

    def key_dim(self, layer: int) -> int:
        """The width of the keys that a layer caches: H, or 0 where it has none of its own."""
        return 0 if self.shares(layer) else self.head_dim

    def steps(self) -> list[range]:
        """The layers as they can be run one after the other: each with those that share with it."""
        starts = [i for i in range(self.num_layers) if not self.shares(i)]
        return list(map(range, starts, [*starts[1:], self.num_layers]))
