"""Llama 3.x and SmolLM2: named configs, and how their checkpoints are written."""

from models.config import ModelConfig
from models.families.base import LAYER_TENSORS, Family
from models.rope import Llama3Rope, Rope

LLAMA = Family(
    qkv_bias=False,
    qk_norm=False,
    layer_tensors=LAYER_TENSORS,
    hf_class="LlamaForCausalLM",
    hf_config={"attention_bias": False, "mlp_bias": False},
    gguf_interleaved=True,
)

ROPE_31 = Llama3Rope(500_000.0, 8.0, 1.0, 4.0, 8192)
ROPE_32 = Llama3Rope(500_000.0, 32.0, 1.0, 4.0, 8192)
# In GGUF this tensor holds what frequencies are divided by; here they follow from the config.
GGUF_ROPE_FACTORS = "rope_freqs.weight"


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
        qkv_bias=LLAMA.qkv_bias,
        qk_norm=LLAMA.qk_norm,
        rope=rope,
    )


CONFIGS = {
    "llama-3.1-8b": _config(32, 4096, 32, 8, 128, 14336, 128256, 131072, False, ROPE_31),
    "llama-3.1-8b-instruct": _config(32, 4096, 32, 8, 128, 14336, 128256, 131072, False, ROPE_31),
    "llama-3.2-1b": _config(16, 2048, 32, 8, 64, 8192, 128256, 131072, True, ROPE_32),
    "llama-3.2-3b": _config(28, 3072, 24, 8, 128, 8192, 128256, 131072, True, ROPE_32),
    "smollm2-135m": _config(30, 576, 9, 3, 64, 1536, 49152, 8192, True, Rope(100_000.0)),
}
