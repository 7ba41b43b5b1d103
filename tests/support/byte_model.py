"""A random model of a few thousand parameters that reads bytes."""

import json
import pathlib

import jax
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from models import transformer
from models.checkpoint import hf_config, weights


def write(folder: pathlib.Path) -> pathlib.Path:
    """Writes it into a folder that is there, as Hugging Face has models; returns the folder."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    hf = {
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(hf))
    config = hf_config.from_hf(hf)
    params = transformer.init_params(config, jax.random.key(1))
    tensors = {}
    for path, value in jax.tree_util.tree_flatten_with_path(params)[0]:
        (name,) = weights._tensor_names(config, path)
        tensors[name] = np.asarray(value).reshape(weights._hf_shape(name, value.shape))
    save_file(tensors, folder / "model.safetensors")
    return folder


def ids(seed: int, length: int) -> list[int]:
    """Random bytes, as the model's token ids."""
    return np.random.default_rng(seed).integers(0, 256, length).tolist()
