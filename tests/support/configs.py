"""Small model configurations and every kind of RoPE."""

import dataclasses
import math

from models.checkpoint import hf_config
from models.config import ModelConfig
from models.rope import LinearRope, Llama3Rope, Rope, YarnRope

LIMIT = 131_072
ROPES = {
    "default": Rope(1_000_000.0),
    "linear": LinearRope(10_000.0, 4.0),
    "llama3": Llama3Rope(500_000.0, 8.0, 1.0, 4.0, 8192),
    "yarn": YarnRope(1_000_000.0, 4.0, 32_768, 32.0, 1.0, 0.1 * math.log(4) + 1, True),
}


HF = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "rope_theta": 10_000.0,
}


def tiny(kind: str) -> ModelConfig:
    parsed = hf_config.from_hf(HF)
    return dataclasses.replace(parsed, rope=ROPES[kind], max_positions=LIMIT, head_dim=16)
