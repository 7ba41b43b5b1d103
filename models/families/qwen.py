"""Qwen2.5 and Qwen3: named configs, and how their checkpoints are written."""

from models.config import ModelConfig
from models.families.base import LAYER_TENSORS, Family, TensorName
from models.rope import Rope

QWEN2 = Family(
    qkv_bias=True,
    qk_norm=False,
    layer_tensors=LAYER_TENSORS
    | {
        "q_bias": TensorName("model.layers.{i}.self_attn.q_proj.bias", "blk.{i}.attn_q.bias"),
        "k_bias": TensorName("model.layers.{i}.self_attn.k_proj.bias", "blk.{i}.attn_k.bias"),
        "v_bias": TensorName("model.layers.{i}.self_attn.v_proj.bias", "blk.{i}.attn_v.bias"),
    },
    hf_class="Qwen2ForCausalLM",
    hf_config={"use_sliding_window": False},
    gguf_interleaved=False,
)
QWEN3 = Family(
    qkv_bias=False,
    qk_norm=True,
    layer_tensors=LAYER_TENSORS
    | {
        "q_norm": TensorName(
            "model.layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight"
        ),
        "k_norm": TensorName(
            "model.layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight"
        ),
    },
    hf_class="Qwen3ForCausalLM",
    hf_config={"attention_bias": False, "use_sliding_window": False},
    gguf_interleaved=False,
)


def _config(name, layers, dim, heads, kv_heads, head_dim, mlp, vocab, positions, tied):
    family = {"qwen2": QWEN2, "qwen3": QWEN3}[name]
    return ModelConfig(
        family=name,
        vocab_size=vocab,
        dim=dim,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_dim=mlp,
        norm_eps=1e-6,
        max_positions=positions,
        tie_embeddings=tied,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        rope=Rope(1_000_000.0),
    )


CONFIGS = {
    "qwen2.5-0.5b": _config("qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, True),
    "qwen2.5-1.5b": _config("qwen2", 28, 1536, 12, 2, 128, 8960, 151936, 32768, True),
    "qwen2.5-3b": _config("qwen2", 36, 2048, 16, 2, 128, 11008, 151936, 32768, True),
    "qwen2.5-7b": _config("qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 32768, False),
    "qwen2.5-14b": _config("qwen2", 48, 5120, 40, 8, 128, 13824, 152064, 32768, False),
    # The GGUF files of the demo models store the output apart from the embeddings.
    "qwen2.5-coder-0.5b": _config("qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, False),
    "qwen2.5-coder-1.5b": _config("qwen2", 28, 1536, 12, 2, 128, 8960, 151936, 32768, False),
    "qwen3-0.6b": _config("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, True),
    "qwen3-1.7b": _config("qwen3", 28, 2048, 16, 8, 128, 6144, 151936, 40960, True),
    "qwen3-4b": _config("qwen3", 36, 2560, 32, 8, 128, 9728, 151936, 40960, True),
    "qwen3-8b": _config("qwen3", 36, 4096, 32, 8, 128, 12288, 151936, 40960, False),
}
