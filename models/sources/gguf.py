"""Converts a GGUF file into a Hugging Face style folder, once per dtype.

Reading the vocabulary and dequantising take many seconds and gigabytes, so that is done once, and
the result is read like any other checkpoint.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import rich.console
import rich.progress
from safetensors.numpy import save_file

from models import rope, tokenizer
from models.families import FAMILIES, MODEL_TENSORS, Family, llama
from models.foreign import digests
from models.sources import converted, partial

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

# A shard is held in memory whole before it is written, so its size is the conversion's peak.
SHARD_BYTES = 2**29

# Attention and RoPE keys change what is computed, so unknown ones are refused.
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
    tokenizer_config.json and source.json (what it was made from, and the digest of each file).
    Tensors have their Hugging Face names and layout `[out, in]`, all in `dtype` ("float32" or
    "bfloat16"). It appears whole or not at all; where another process was faster, its folder stays.
    What killed conversions left is removed. `progress` shows a bar on stderr.

    Raises:
      ValueError: the file is not GGUF, truncated, of an unknown architecture, or holds metadata,
        tensors or a tokenizer that cannot be converted faithfully.
      FileExistsError: `folder` exists and was made from something else.
      converted.ChangedError: it exists, and its files are not those that were written.
    """
    path, folder = pathlib.Path(path), pathlib.Path(folder)
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    source = _source(path, dtype)
    if _is_converted(folder, source):
        return
    reader = open_reader(path)
    names = _hf_names(reader)
    config = _hf_config(reader, dtype)
    tok, tok_config = tokenizer.from_gguf(reader)

    with partial.folder(folder) as unfinished:
        _write_json(unfinished / "config.json", config)
        _write_json(unfinished / "tokenizer_config.json", tok_config)
        tok.save(str(unfinished / "tokenizer.json"), pretty=False)
        _write_weights(unfinished, reader, names, config, DTYPES[dtype], progress)
        source["files"] = converted.file_digests(unfinished)
        _write_json(unfinished / converted.NOTE, source)
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not _is_converted(folder, source):
                raise


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
    """Rows of a q or k projection `[heads * H, D]`, from GGUF's interleaved pairs to halves."""
    pairs = w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:])
    return pairs.swapaxes(1, 2).reshape(w.shape)


class _Reader(gguf.GGUFReader):
    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        # The reader slices past the end of a short file and fails on a reshape, with a message that
        # does not help.
        end = start_offs
        for field in fields:
            _, _, _, dims, kind, offset = field.parts
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind[0])]
            n_bytes = int(np.prod(dims)) // block * size
            end = max(end, start_offs + int(offset[0]) + n_bytes)
        if end > len(self.data):
            raise ValueError(f"its tensors need {end:,} bytes")
        super()._build_tensors(start_offs, fields)


def _family(reader: gguf.GGUFReader) -> tuple[str, Family]:
    name = _value(reader, "general.architecture")
    if name not in FAMILIES:
        raise ValueError(
            f"the GGUF architecture {name!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    return name, FAMILIES[name]


def _hf_config(reader: gguf.GGUFReader, dtype: str) -> dict[str, Any]:
    name, family = _family(reader)

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
        "architectures": [family.hf_class],
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
        "vocab_size": int(tensors[MODEL_TENSORS["embedding"].gguf].shape[1]),
        "tie_word_embeddings": MODEL_TENSORS["output"].gguf not in tensors,
        "torch_dtype": dtype,
        **family.hf_config,
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
    if llama.GGUF_ROPE_FACTORS in tensors:
        if config["rope_scaling"]:
            raise ValueError(
                f"{llama.GGUF_ROPE_FACTORS} and {name}.rope.scaling are both given; expected one"
            )
        factors = np.asarray(tensors[llama.GGUF_ROPE_FACTORS].data)
        config["rope_scaling"] = _llama3_scaling(factors, config["rope_theta"], head_dim)
    for token in ("bos", "eos"):
        key = f"tokenizer.ggml.{token}_token_id"
        if key in reader.fields:
            config[f"{token}_token_id"] = _value(reader, key)
    return config


def _hf_names(reader: gguf.GGUFReader) -> dict[str, str]:
    """GGUF name -> Hugging Face name of every weight. ValueError if one is missing or unknown."""
    name, family = _family(reader)
    names = {tensor.gguf: tensor.hf for tensor in MODEL_TENSORS.values()}
    for i in range(_value(reader, f"{name}.block_count")):
        for tensor in family.layer_tensors.values():
            names[tensor.gguf.format(i=i)] = tensor.hf.format(i=i)
    in_file = {t.name for t in reader.tensors}
    output = MODEL_TENSORS["output"].gguf  # absent where the embeddings are the output too
    missing = sorted(names.keys() - in_file - {output})
    unexpected = sorted(in_file - names.keys() - {llama.GGUF_ROPE_FACTORS})
    if missing or unexpected:
        raise ValueError(
            f"the tensors are not those of a {name} model: missing {_some(missing)}; "
            f"unexpected {_some(unexpected)}"
        )
    return {name: hf for name, hf in names.items() if name in in_file}


def _value(reader: gguf.GGUFReader, key: str) -> Any:
    if key not in reader.fields:
        short = [k for k in reader.fields if not k.startswith(("GGUF.", "tokenizer."))]
        raise ValueError(f"the GGUF metadata lack {key}; they have {', '.join(short)}")
    return reader.fields[key].contents()


def _shortest(value: float) -> float:
    # GGUF stores float32: 1e-6 would come out as 9.999999974752427e-07.
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
    # GGUF stores the outcome, not the constants. All Llama 3.x share these except for the factor,
    # which is what the lowest frequency is divided by; whether they fit is checked below.
    scaled = dataclasses.replace(llama.ROPE_31, theta=theta, factor=float(factors.max()))
    plain = rope.frequencies(rope.Rope(theta), head_dim)
    expected = plain / rope.frequencies(scaled, head_dim)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise ValueError(
            f"{llama.GGUF_ROPE_FACTORS} does not hold the frequency scaling of Llama-3.1 or 3.2; "
            "use the model's safetensors (its Hugging Face hub id) instead"
        )
    return {
        "rope_type": "llama3",
        "factor": scaled.factor,
        "low_freq_factor": scaled.low_freq_factor,
        "high_freq_factor": scaled.high_freq_factor,
        "original_max_position_embeddings": scaled.original_max_positions,
    }


def _interleaved_heads(reader: gguf.GGUFReader, config: dict[str, Any]) -> dict[str, int]:
    """GGUF name -> number of heads, of the tensors whose rows are to be put in our order."""
    family = _family(reader)[1]
    if not family.gguf_interleaved:
        return {}
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    return {
        family.layer_tensors[part].gguf.format(i=i): number
        for part, number in heads.items()
        for i in range(config["num_hidden_layers"])
    }


def _write_weights(
    folder: pathlib.Path,
    reader: gguf.GGUFReader,
    names: dict[str, str],
    config: dict[str, Any],
    dtype: np.dtype,
    progress: bool,
) -> None:
    interleaved = _interleaved_heads(reader, config)
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
                if t.name in interleaved:
                    w = unpermute(w, interleaved[t.name])
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
    size = path.stat().st_size
    sha256 = digests.of_file(path)
    return {"kind": "gguf", "file": path.name, "sha256": sha256, "size": size, "dtype": dtype}


def _is_converted(folder: pathlib.Path, source: dict[str, Any]) -> bool:
    if not folder.exists():
        return False
    recorded = converted.note(folder) or {}
    # The name may differ: the same file, copied.
    if all(recorded.get(key) == source[key] for key in ("sha256", "dtype")):
        converted.check_small(folder, recorded)
        return True
    raise FileExistsError(
        f"{folder} exists and is not this model in {source['dtype']}: it was made from "
        f"{recorded.get('file', 'something else')} in {recorded.get('dtype', 'an unknown dtype')}. "
        "Choose another folder or delete it."
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more or "none"


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
