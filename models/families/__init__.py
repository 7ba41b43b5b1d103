"""The families of models, by Hugging Face's model_type, and the sizes that have a name."""

from models.config import ModelConfig
from models.families import llama, qwen
from models.families.base import LAYER_TENSORS, MODEL_TENSORS, Family, TensorName

FAMILIES: dict[str, Family] = {
    "llama": llama.LLAMA,
    "qwen2": qwen.QWEN2,
    "qwen3": qwen.QWEN3,
}
CONFIGS: dict[str, ModelConfig] = {**llama.CONFIGS, **qwen.CONFIGS}

__all__ = ["CONFIGS", "FAMILIES", "LAYER_TENSORS", "MODEL_TENSORS", "Family", "TensorName"]
