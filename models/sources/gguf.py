"""Converts a GGUF file into a Hugging Face style folder, once per dtype.

Reading the vocabulary and dequantising take many seconds and gigabytes, so it is done once and the
result is read like any other checkpoint.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import rich.console
import rich.progress
from safetensors.numpy import save_file

from models import tokenizer

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

# A shard is held in memory whole before it is written, so its size is the conversion's peak.
SHARD_BYTES = 2**29

MODEL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
HEAD_TENSORS = {"output.weight": "lm_head.weight"}
# Llama-3's frequency scaling: described in the config, not a weight.
ROPE_FREQS = "rope_freqs.weight"

LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
QKV_BIASES = {f"attn_{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkv"}
QK_NORMS = {f"attn_{x}_norm.weight": f"self_attn.{x}_norm.weight" for x in "qk"}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What sets a GGUF architecture apart: its Hugging Face class and config, its layer tensors."""

    hf_class: str
    layer_tensors: dict[str, str]
    hf_config: dict[str, Any]
    permuted: bool  # q and k rows are stored interleaved, two by two


_QWEN3_CONFIG = {"attention_bias": False, "use_sliding_window": False}
ARCHITECTURES = {
    "llama": Architecture(
        "LlamaForCausalLM", LAYER_TENSORS, {"attention_bias": False, "mlp_bias": False}, True
    ),
    "qwen2": Architecture(
        "Qwen2ForCausalLM", LAYER_TENSORS | QKV_BIASES, {"use_sliding_window": False}, False
    ),
    "qwen3": Architecture("Qwen3ForCausalLM", LAYER_TENSORS | QK_NORMS, _QWEN3_CONFIG, False),
}

# Attention and RoPE keys change what is computed: one that is not understood is refused.
KNOWN_KEYS = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}


def convert(
    path: str | os.PathLike, folder: str | os.PathLike, dtype: str, progress: bool = True
) -> None:
    """Writes the model in the GGUF file `path` to `folder`, as a Hugging Face checkpoint.

    The folder gets config.json, model-*-of-*.safetensors with their index, tokenizer.json,
    tokenizer_config.json and source.json (what it was made from). Tensors have their Hugging Face
    names and layout `[out, in]`, all in `dtype` ("float32" or "bfloat16"). It appears whole or not
    at all; where another process was faster its folder is kept. `progress` shows a bar on stderr.

    Raises:
      ValueError: the file is not GGUF, truncated, of an unknown architecture, or holds metadata,
        tensors or a tokenizer that cannot be converted faithfully.
      FileExistsError: `folder` exists and was made from something else.
    """
    path, folder = pathlib.Path(path), pathlib.Path(folder)
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    source = _source(path, dtype)
    if _already_made(folder, source):
        return
    reader = open_reader(path)
    names = _hf_names(reader)
    config = _hf_config(reader, dtype)
    tok, tok_config = tokenizer.from_gguf(reader)

    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        _write_json(partial / "config.json", config)
        _write_json(partial / "source.json", source)
        _write_json(partial / "tokenizer_config.json", tok_config)
        tok.save(str(partial / "tokenizer.json"), pretty=False)
        _write_weights(partial, reader, names, config, DTYPES[dtype], progress)
        try:
            os.replace(partial, folder)
        except OSError:
            if not _already_made(folder, source):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_reader(path: str | os.PathLike) -> gguf.GGUFReader:
    """The GGUF file `path`, parsed. Raises ValueError if it is not GGUF, truncated or corrupt."""
    path = pathlib.Path(path)
    with path.open("rb") as f:
        magic = f.read(4)
    if magic != b"GGUF":
        raise ValueError(
            f"{path} is not a GGUF file: it begins with {magic!r}, expected b'GGUF'. "
            "Is it the whole file, and not a pointer to it or a web page?"
        )
    try:
        return _Reader(path)
    except (ValueError, IndexError, KeyError) as e:
        raise ValueError(
            f"{path} is truncated or corrupt ({path.stat().st_size:,} bytes): {e}. Get it again."
        ) from e


def unpermute(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a llama q or k projection `[heads * H, D]`, from GGUF's interleaved pairs to halves.

    GGUF keeps the two numbers that RoPE rotates together side by side; Hugging Face keeps them half
    a head apart.
    """
    pairs = w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:])
    return pairs.swapaxes(1, 2).reshape(w.shape)


class _Reader(gguf.GGUFReader):
    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        # The reader slices past the end of a short file and fails on a reshape, which tells nobody
        # what is wrong.
        end = start_offs
        for field in fields:
            _, _, _, dims, kind, offset = field.parts
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind[0])]
            n_bytes = int(np.prod(dims)) // block * size
            end = max(end, start_offs + int(offset[0]) + n_bytes)
        if end > len(self.data):
            raise ValueError(f"its tensors need {end:,} bytes")
        super()._build_tensors(start_offs, fields)


def _architecture(reader: gguf.GGUFReader) -> tuple[str, Architecture]:
    name = _value(reader, "general.architecture")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"the GGUF architecture {name!r} is not supported; supported: "
            f"{', '.join(ARCHITECTURES)}"
        )
    return name, ARCHITECTURES[name]


def _hf_config(reader: gguf.GGUFReader, dtype: str) -> dict[str, Any]:
    name, arch = _architecture(reader)

    def get(key: str) -> Any:
        return _value(reader, f"{name}.{key}")

    keys = {key.removeprefix(f"{name}.") for key in reader.fields if key.startswith(f"{name}.")}
    unknown = sorted(k for k in keys - KNOWN_KEYS if k.startswith(("attention.", "rope.")))
    if unknown:
        raise ValueError(
            f"the GGUF metadata set {', '.join(f'{name}.{key}' for key in unknown)}, which is not "
            "supported; use the model's safetensors (its Hugging Face hub id) instead"
        )
    tensors = {t.name: t for t in reader.tensors}
    config = {
        "architectures": [arch.hf_class],
        "model_type": name,
        "hidden_act": "silu",
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": get("attention.head_count"),
        "num_key_value_heads": get("attention.head_count_kv"),
        "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(get("rope.freq_base")),
        "rope_scaling": _rope_scaling(get, keys),
        "max_position_embeddings": get("context_length"),
        # The embeddings may have more rows than the tokenizer has tokens.
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": dtype,
        **arch.hf_config,
    }
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    if "attention.key_length" in keys:
        config["head_dim"] = head_dim = get("attention.key_length")
    for key in ("attention.value_length", "rope.dimension_count"):
        if key in keys and get(key) != head_dim:
            raise ValueError(
                f"the GGUF metadata set {name}.{key} to {get(key)}, but heads have {head_dim} "
                "dimensions; values of another width and partial RoPE are not supported"
            )
    if ROPE_FREQS in tensors:
        if config["rope_scaling"]:
            raise ValueError(f"{ROPE_FREQS} and {name}.rope.scaling are both given; expected one")
        factors = np.asarray(tensors[ROPE_FREQS].data)
        config["rope_scaling"] = _llama3_scaling(factors, config["rope_theta"], head_dim)
    for token in ("bos", "eos"):
        key = f"tokenizer.ggml.{token}_token_id"
        if key in reader.fields:
            config[f"{token}_token_id"] = _value(reader, key)
    return config


def _hf_names(reader: gguf.GGUFReader) -> dict[str, str]:
    name, arch = _architecture(reader)
    names = MODEL_TENSORS.copy()
    for i in range(_value(reader, f"{name}.block_count")):
        names |= {
            f"blk.{i}.{ours}": f"model.layers.{i}.{theirs}"
            for ours, theirs in arch.layer_tensors.items()
        }
    found = {t.name for t in reader.tensors}
    missing = sorted(names.keys() - found)
    unexpected = sorted(found - names.keys() - HEAD_TENSORS.keys() - {ROPE_FREQS})
    if missing or unexpected:
        raise ValueError(
            f"the tensors are not those of a {name} model: missing {_some(missing)}; "
            f"unexpected {_some(unexpected)}"
        )
    return names | {k: v for k, v in HEAD_TENSORS.items() if k in found}


def _value(reader: gguf.GGUFReader, key: str) -> Any:
    if key not in reader.fields:
        short = [k for k in reader.fields if not k.startswith(("GGUF.", "tokenizer."))]
        raise ValueError(f"the GGUF metadata lack {key}; they have {', '.join(short)}")
    return reader.fields[key].contents()


def _shortest(value: float) -> float:
    # GGUF keeps float32: 1e-6 would come out as 9.999999974752427e-07.
    return float(str(np.float32(value)))


def _rope_scaling(get: Callable[[str], Any], keys: set[str]) -> dict[str, Any] | None:
    kind = get("rope.scaling.type") if "rope.scaling.type" in keys else "none"
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ValueError(
            f"the RoPE scaling {kind!r} is not supported; supported: none, linear, yarn"
        )
    scaling = {"rope_type": kind, "factor": _shortest(get("rope.scaling.factor"))}
    if kind == "yarn":
        original = get("rope.scaling.original_context_length")
        scaling["original_max_position_embeddings"] = original
        for beta in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{beta}" in keys:
                scaling[beta] = _shortest(get(f"rope.scaling.yarn_{beta}"))
    return scaling


def _llama3_scaling(factors: np.ndarray, theta: float, head_dim: int) -> dict[str, Any]:
    """The llama3 rope_scaling whose frequencies are divided by `factors` `[head_dim / 2]`."""
    # GGUF keeps the outcome, not the constants. All Llama-3.x share these but for the factor, which
    # is what the lowest frequency is divided by; whether they are the ones is checked below.
    low, high, original, factor = 1.0, 4.0, 8192, float(factors.max())
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise ValueError(
            f"{ROPE_FREQS} does not hold the frequency scaling of Llama-3.1 or 3.2; use the "
            "model's safetensors (its Hugging Face hub id) instead"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _write_weights(
    folder: pathlib.Path,
    reader: gguf.GGUFReader,
    names: dict[str, str],
    config: dict[str, Any],
    dtype: np.dtype,
    progress: bool,
) -> None:
    heads = {"attn_q.weight": "num_attention_heads", "attn_k.weight": "num_key_value_heads"}
    permuted = _architecture(reader)[1].permuted
    shards = list(_shards([t for t in reader.tensors if t.name in names], dtype.itemsize))
    weight_map, total = {}, 0
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(console=console, disable=not progress) as bar:
        task = bar.add_task(f"Converting to {dtype.name}", total=sum(map(len, shards)))
        for i, shard in enumerate(shards, 1):
            file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
            tensors = {}
            for t in shard:
                w = _dequantise(t)
                kind = t.name.split(".", 2)[-1]
                if permuted and kind in heads:
                    w = unpermute(w, config[heads[kind]])
                tensors[names[t.name]] = np.ascontiguousarray(w.astype(dtype, copy=False))
                bar.advance(task)
            # transformers refuses a file whose metadata do not name a framework.
            save_file(tensors, folder / file, metadata={"format": "pt"})
            # safetensors writes files that only their owner can read; a cache may be shared.
            (folder / file).chmod((folder / "config.json").stat().st_mode)
            weight_map |= dict.fromkeys(tensors, file)
            total += sum(w.nbytes for w in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _shards(tensors: list[gguf.ReaderTensor], itemsize: int) -> Iterator[list[gguf.ReaderTensor]]:
    shard, size = [], 0
    for t in tensors:
        n_bytes = int(t.n_elements) * itemsize
        if shard and size + n_bytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(t)
        size += n_bytes
    yield shard


def _dequantise(t: gguf.ReaderTensor) -> np.ndarray:
    try:
        return gguf.dequantize(t.data, t.tensor_type)
    except NotImplementedError as e:
        raise ValueError(
            f"{t.name} is stored as {t.tensor_type.name}, which cannot be dequantised; use a file "
            "quantised to Q8_0, Q4_K_M or the like"
        ) from e


def _source(path: pathlib.Path, dtype: str) -> dict[str, Any]:
    with path.open("rb") as f:
        sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    size = path.stat().st_size
    return {"kind": "gguf", "file": path.name, "sha256": sha256, "size": size, "dtype": dtype}


def _already_made(folder: pathlib.Path, source: dict[str, Any]) -> bool:
    if not folder.exists():
        return False
    file = folder / "source.json"
    found = json.loads(file.read_text("utf-8")) if file.exists() else {}
    # The name may differ: the same file, copied.
    if all(found.get(key) == source[key] for key in ("sha256", "dtype")):
        return True
    raise FileExistsError(
        f"{folder} exists and is not this model in {source['dtype']}: it was made from "
        f"{found.get('file', 'something else')} in {found.get('dtype', 'an unknown dtype')}. "
        "Choose another folder or delete it."
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more or "none"


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
