"""Llama: named configs, and the names of its tensors in Hugging Face checkpoints."""

from models.config import FAMILIES, ModelConfig
from models.rope import Llama3Rope, Rope


def _config(layers, dim, heads, kv_heads, head_dim, mlp, vocab, positions, tied, rope):
    return ModelConfig(
        family="llama",
        vocab_size=vocab,
        dim=dim,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_dim=mlp,
        norm_eps=1e-5,
        max_positions=positions,
        tie_embeddings=tied,
        rope=rope,
        **FAMILIES["llama"],
    )


_ROPE_31 = Llama3Rope(500_000.0, 8.0, 1.0, 4.0, 8192)
_ROPE_32 = Llama3Rope(500_000.0, 32.0, 1.0, 4.0, 8192)

CONFIGS = {
    "llama-3.1-8b": _config(32, 4096, 32, 8, 128, 14336, 128256, 131072, False, _ROPE_31),
    "llama-3.1-8b-instruct": _config(32, 4096, 32, 8, 128, 14336, 128256, 131072, False, _ROPE_31),
    "llama-3.2-1b": _config(16, 2048, 32, 8, 64, 8192, 128256, 131072, True, _ROPE_32),
    "llama-3.2-3b": _config(28, 3072, 24, 8, 128, 8192, 128256, 131072, True, _ROPE_32),
    "smollm2-135m": _config(30, 576, 9, 3, 64, 1536, 49152, 8192, True, Rope(100_000.0)),
}

# Parameter -> tensor; {i} is the layer. Shapes: weights.py.
KEYS = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "output": "lm_head.weight",
}
LAYER_KEYS = {
    "attention_norm": "model.layers.{i}.input_layernorm.weight",
    "q": "model.layers.{i}.self_attn.q_proj.weight",
    "k": "model.layers.{i}.self_attn.k_proj.weight",
    "v": "model.layers.{i}.self_attn.v_proj.weight",
    "o": "model.layers.{i}.self_attn.o_proj.weight",
    "mlp_norm": "model.layers.{i}.post_attention_layernorm.weight",
    "mlp/gate": "model.layers.{i}.mlp.gate_proj.weight",
    "mlp/up": "model.layers.{i}.mlp.up_proj.weight",
    "mlp/down": "model.layers.{i}.mlp.down_proj.weight",
}
