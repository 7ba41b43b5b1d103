"""Converts a GGUF file into a Hugging Face style folder, once per dtype.

Reading the vocabulary and dequantising take many seconds and gigabytes, so that is done once, and
the result is read like any other checkpoint.
"""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import rich.console
import rich.progress
from safetensors.numpy import save_file

from models.checkpoint import tokenizer
from models.disk import files, partial
from models.families import FAMILIES
from models.foreign import digests, gguf_file, regular
from models.foreign.gguf_file import File, Tensor
from models.sources import converted, gguf_metadata

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

# A shard is held in memory whole before it is written, so its size is the conversion's peak.
SHARD_BYTES = 2**29


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
    file = gguf_file.open_file(path)
    with regular.one_line(path, "cannot be converted"):
        config = gguf_metadata.hf_config_of(file, dtype)
        names = gguf_metadata.hf_names(file, config)
        tok, tok_config = tokenizer.from_gguf(file)

    with partial.folder(folder) as unfinished:
        _write_json(unfinished / "config.json", config)
        _write_json(unfinished / "tokenizer_config.json", tok_config)
        files.write_whole(unfinished / "tokenizer.json", tok.to_str())
        with regular.one_line(path, "cannot be converted"):
            _write_weights(unfinished, file, names, config, DTYPES[dtype], progress)
        if digests.of_file(path) != source["sha256"]:
            raise ValueError(f"{path} changed while it was converted. Try again when it is whole.")
        converted.write_note(unfinished, source)
        try:
            files.publish(unfinished, folder)
        except OSError:
            if not _is_converted(folder, source):
                raise


def unpermute(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection `[heads * H, D]`, from GGUF's interleaved pairs to halves."""
    pairs = w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:])
    return pairs.swapaxes(1, 2).reshape(w.shape)


def _interleaved_heads(config: dict[str, Any]) -> dict[str, int]:
    """GGUF name -> number of heads, of the tensors whose rows are to be put in our order."""
    family = FAMILIES[config["model_type"]]
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
    source: File,
    names: dict[str, str],
    config: dict[str, Any],
    dtype: np.dtype,
    progress: bool,
) -> None:
    interleaved = _interleaved_heads(config)
    shards = list(_shards([t for t in source.tensors if t.name in names], dtype.itemsize))
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
            unfinished = folder / f"{file}.partial"
            save_file(tensors, unfinished, metadata={"format": "pt"})
            # safetensors writes files that only their owner can read; a cache may be shared.
            unfinished.chmod((folder / "config.json").stat().st_mode)
            files.publish(unfinished, folder / file)
            weight_map |= dict.fromkeys(tensors, file)
            total += sum(w.nbytes for w in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _shards(tensors: list[Tensor], itemsize: int) -> Iterator[list[Tensor]]:
    shard, size = [], 0
    for t in tensors:
        n_bytes = int(t.n_elements) * itemsize
        if shard and size + n_bytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(t)
        size += n_bytes
    yield shard


def _dequantise(t: Tensor) -> np.ndarray:
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


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    files.write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
