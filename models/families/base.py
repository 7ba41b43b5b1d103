"""The decoder that all families share, and Family: what sets one of them apart."""

import dataclasses
from typing import Any, NamedTuple


class TensorName(NamedTuple):
    """A parameter's name in checkpoints; `{i}` stands for the layer."""

    hf: str
    gguf: str


# By the names of our parameters; their shapes are in transformer.py.
MODEL_TENSORS = {
    "embedding": TensorName("model.embed_tokens.weight", "token_embd.weight"),
    "final_norm": TensorName("model.norm.weight", "output_norm.weight"),
    "output": TensorName("lm_head.weight", "output.weight"),  # not where embeddings are tied
}
LAYER_TENSORS = {
    "attention_norm": TensorName(
        "model.layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight"
    ),
    "q": TensorName("model.layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight"),
    "k": TensorName("model.layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight"),
    "v": TensorName("model.layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight"),
    "o": TensorName("model.layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight"),
    "mlp_norm": TensorName(
        "model.layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight"
    ),
    "mlp/gate": TensorName("model.layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight"),
    "mlp/up": TensorName("model.layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight"),
    "mlp/down": TensorName("model.layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight"),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """What a family adds to the common decoder, and how its checkpoints are written."""

    qkv_bias: bool  # queries, keys and values have a bias
    qk_norm: bool  # an RMSNorm over each head of the queries and keys
    layer_tensors: dict[str, TensorName]
    hf_class: str  # its `architectures` in a Hugging Face config.json
    hf_config: dict[str, Any]  # keys of that file that the metadata of GGUF do not give
    # Whether GGUF stores the two numbers that RoPE rotates together side by side in q and k;
    # Hugging Face stores them half a head apart.
    gguf_interleaved: bool
