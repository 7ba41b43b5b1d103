"""Small random GGUF files."""

import gguf as gguf_lib
import numpy as np
from gguf import GGMLQuantizationType as Kind
from tokenizers.pre_tokenizers import ByteLevel

D, M, HEADS, KV_HEADS, H, LAYERS = 32, 64, 4, 2, 8, 2
TOKENS = [*sorted(ByteLevel.alphabet()), "he", "<|im_end|>"]
V = len(TOKENS) + 6  # padded, as real embeddings are

LAYER_SHAPES = {
    "attn_norm.weight": (D,),
    "attn_q.weight": (HEADS * H, D),
    "attn_k.weight": (KV_HEADS * H, D),
    "attn_v.weight": (KV_HEADS * H, D),
    "attn_output.weight": (D, HEADS * H),
    "ffn_norm.weight": (D,),
    "ffn_gate.weight": (M, D),
    "ffn_up.weight": (M, D),
    "ffn_down.weight": (D, M),
}
EXTRA_SHAPES = {
    "llama": {},
    "qwen2": {"attn_q.bias": (HEADS * H,), "attn_k.bias": (KV_HEADS * H,)}
    | {"attn_v.bias": (KV_HEADS * H,)},
    "qwen3": {"attn_q_norm.weight": (H,), "attn_k_norm.weight": (H,)},
}


def random_tensors(arch, tied=False, seed=0):
    shapes = {"token_embd.weight": (V, D), "output_norm.weight": (D,)}
    if not tied:
        shapes["output.weight"] = (V, D)
    for i in range(LAYERS):
        layer = LAYER_SHAPES | EXTRA_SHAPES[arch]
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write_gguf(path, arch, tensors, kinds=None, metadata=None, leave_out=()):
    writer = gguf_lib.GGUFWriter(path, arch)
    numbers = {
        f"{arch}.block_count": LAYERS,
        f"{arch}.context_length": 512,
        f"{arch}.embedding_length": D,
        f"{arch}.feed_forward_length": M,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.rope.freq_base": 1e6,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
        "tokenizer.ggml.eos_token_id": TOKENS.index("<|im_end|>"),
    }
    for key, value in (numbers | (metadata or {})).items():
        if key in leave_out:
            continue
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value < 0:
            writer.add_int32(key, value)
        else:
            writer.add_uint32(key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 1) + [3])
    writer.add_token_merges(["h e"])
    for name, w in tensors.items():
        kind = (kinds or {}).get(name.split(".", 2)[-1], Kind.F32)
        writer.add_tensor(name, gguf_lib.quantize(w, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
