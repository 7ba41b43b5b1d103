"""Small random GGUF files, converted and compared with what was put in."""

import json
import os
import threading

import gguf as gguf_lib
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file

from models.families import LAYER_TENSORS
from models.sources import gguf
from tests.support.gguf_files import (
    HEADS,
    KV_HEADS,
    LAYERS,
    TOKENS,
    D,
    H,
    V,
    random_tensors,
    write_gguf,
)


def interleave(w, heads):
    """llama.cpp's own permutation, on its way into GGUF."""
    return (
        w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
    )


def read_folder(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {file: load_file(folder / file) for file in set(index["weight_map"].values())}
    tensors = {name: files[file][name] for name, file in index["weight_map"].items()}
    assert sum(map(len, files.values())) == len(tensors)
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in tensors.values())
    return json.loads((folder / "config.json").read_text()), tensors


def convert(path, folder, dtype="float32"):
    gguf.convert(path, folder, dtype, progress=False)
    return read_folder(folder)


def test_llama_rows_are_put_back_in_order(tmp_path):
    tensors = random_tensors("llama", tied=True)
    stored = dict(tensors)
    for i in range(LAYERS):
        for name, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS)):
            name = f"blk.{i}.{name}.weight"
            stored[name] = interleave(tensors[name], heads)
            assert not np.array_equal(stored[name], tensors[name])
    config, actual = convert(write_gguf(tmp_path / "m.gguf", "llama", stored), tmp_path / "m")
    assert config["tie_word_embeddings"] and "lm_head.weight" not in actual
    for i in range(LAYERS):
        for name in LAYER_TENSORS.values():
            np.testing.assert_array_equal(
                actual[name.hf.format(i=i)], tensors[name.gguf.format(i=i)]
            )
    assert len(actual) == len(tensors)


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_qwen_is_converted_as_it_is(tmp_path, arch, dtype):
    tensors = random_tensors(arch)
    kinds = {"attn_k.weight": Kind.F16, "ffn_up.weight": Kind.Q8_0, "weight": Kind.Q8_0}
    config, actual = convert(
        write_gguf(tmp_path / "m.gguf", arch, tensors, kinds), tmp_path / "m", dtype
    )
    assert config["architectures"] == [f"Qwen{arch[-1]}ForCausalLM"]
    assert config["model_type"] == arch and config["torch_dtype"] == dtype
    assert config["rms_norm_eps"] == 1e-6 and config["rope_theta"] == 1e6
    assert config["vocab_size"] == V and not config["tie_word_embeddings"]
    assert config["eos_token_id"] == TOKENS.index("<|im_end|>")

    np_dtype = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[dtype]
    assert all(w.dtype == np_dtype for w in actual.values())
    names = {name.gguf.format(i=1): name.hf.format(i=1) for name in LAYER_TENSORS.values()}
    names |= {
        "output.weight": "lm_head.weight",
        "token_embd.weight": "model.embed_tokens.weight",
    }
    if arch == "qwen2":
        names["blk.1.attn_v.bias"] = "model.layers.1.self_attn.v_proj.bias"
    else:
        names["blk.1.attn_k_norm.weight"] = "model.layers.1.self_attn.k_norm.weight"
    for ours, theirs in names.items():
        kind = kinds.get(ours.split(".", 2)[-1], Kind.F32)
        stored = gguf_lib.dequantize(gguf_lib.quantize(tensors[ours], kind), kind)
        np.testing.assert_array_equal(actual[theirs], stored.astype(np_dtype))
        np.testing.assert_allclose(np.float32(actual[theirs]), tensors[ours], rtol=5e-3, atol=0.03)


def test_shards_hold_every_tensor_once(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf", "qwen2", random_tensors("qwen2"))
    _, whole = convert(path, tmp_path / "whole")
    monkeypatch.setattr(gguf, "SHARD_BYTES", 20_000)  # less than the embeddings alone
    _, cut = convert(path, tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 3
    assert whole.keys() == cut.keys()
    for name, w in whole.items():
        np.testing.assert_array_equal(w, cut[name])


def test_the_folder_says_what_it_was_made_from(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "qwen2", random_tensors("qwen2"))
    convert(path, tmp_path / "m")
    source = json.loads((tmp_path / "m" / "source.json").read_text())
    assert source["kind"] == "gguf" and source["file"] == "m.gguf"
    assert source["size"] == path.stat().st_size and len(source["sha256"]) == 64
    gguf.convert(path, tmp_path / "m", "float32")  # nothing to do
    other = write_gguf(tmp_path / "o.gguf", "qwen2", random_tensors("qwen2", seed=1))
    with pytest.raises(FileExistsError, match="made from m.gguf in float32"):
        gguf.convert(other, tmp_path / "m", "float32")


def test_a_conversion_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = write_gguf(tmp_path / "m.gguf", "qwen2", random_tensors("qwen2")), []

    def sync(path):
        synced.append(path.name)
        whole = (tmp_path / "m").exists()
        assert whole == (path == tmp_path and len(synced) > 1), "the folder's name comes last"

    monkeypatch.setattr(gguf.files, "sync", sync)
    gguf.convert(path, tmp_path / "m", "float32", progress=False)
    written = os.listdir(tmp_path / "m")
    for name in written:
        assert [s for s in synced if s.startswith(name) and s.endswith(".partial")], name
    # The folder, of each file the bytes and the name, then the folder's names and its own.
    assert len(synced) == 2 * len(written) + 3 and synced[-1] == tmp_path.name


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf", "qwen2", random_tensors("qwen2"))
    calls = []

    def interrupted(t):
        calls.append(t)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return gguf_lib.dequantize(t.data, t.tensor_type)

    monkeypatch.setattr(gguf, "_dequantise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gguf.convert(path, tmp_path / "m", "float32", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    convert(path, tmp_path / "m")


def test_concurrent_conversions_agree(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "qwen2", random_tensors("qwen2"))
    errors = []

    def run():
        try:
            gguf.convert(path, tmp_path / "m", "float32", progress=False)
        except (ValueError, OSError) as e:
            errors.append(e)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "m.gguf"]
    read_folder(tmp_path / "m")


@pytest.mark.parametrize("share", [0.999, 0.7, 0.2, 0.001])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = write_gguf(tmp_path / "m.gguf", "qwen2", random_tensors("qwen2"))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        gguf.convert(path, tmp_path / "m", "float32")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ValueError, match="not a GGUF file"):
        gguf.convert(tmp_path / "m.gguf", tmp_path / "m", "float32")


def test_what_cannot_be_converted_is_refused_by_name(tmp_path):
    tensors = random_tensors("qwen2")

    def refused(match, arch="qwen2", tensors=tensors, **kwargs):
        path = write_gguf(tmp_path / "m.gguf", arch, tensors, **kwargs)
        with pytest.raises(ValueError, match=match):
            gguf.convert(path, tmp_path / "m", "float32")
        assert not (tmp_path / "m").exists()

    refused("'gemma3' is not supported; supported: llama, qwen2, qwen3", arch="gemma3")
    refused("lack qwen2.rope.freq_base", leave_out=["qwen2.rope.freq_base"])
    refused("'longrope' is not supported", metadata={"qwen2.rope.scaling.type": "longrope"})
    refused(
        "qwen2.attention.sliding_window",
        metadata={"qwen2.attention.sliding_window": 64},
    )
    refused("partial RoPE", metadata={"qwen2.rope.dimension_count": H // 2})
    some = {k: v for k, v in tensors.items() if k != "blk.1.attn_v.bias"}
    refused("missing blk.1.attn_v.bias; unexpected none", tensors=some)
    more = tensors | {"blk.0.ffn_gate_inp.weight": np.ones((4, D), np.float32)}
    refused("missing none; unexpected blk.0.ffn_gate_inp.weight", tensors=more)
    path = write_gguf(tmp_path / "m.gguf", "qwen2", tensors)
    with pytest.raises(ValueError, match="'float16' is not one of float32, bfloat16"):
        gguf.convert(path, tmp_path / "m", "float16")


def test_rope_scaling_of_the_metadata(tmp_path):
    metadata = {
        "qwen2.rope.scaling.type": "yarn",
        "qwen2.rope.scaling.factor": 4.0,
        "qwen2.rope.scaling.original_context_length": 128,
        "qwen2.attention.key_length": H,
    }
    path = write_gguf(tmp_path / "m.gguf", "qwen2", random_tensors("qwen2"), metadata=metadata)
    config, _ = convert(path, tmp_path / "m")
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert config["rope_scaling"] == yarn and config["head_dim"] == H


def test_llama3_frequency_scaling_is_recognised(tmp_path):
    theta, factor = 5e5, 32.0
    factors = []
    for i in range(H // 2):
        wavelength = 2 * np.pi * theta ** (2 * i / H)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    assert 1.0 < factors[2] < factor  # all three cases
    tensors = random_tensors("llama")
    metadata = {"llama.rope.freq_base": theta}
    scaled = tensors | {"rope_freqs.weight": np.float32(factors)}
    path = write_gguf(tmp_path / "m.gguf", "llama", scaled, metadata=metadata)
    config, actual = convert(path, tmp_path / "m")
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert not any("rope" in name for name in actual)
    factors[2] *= 1.1
    scaled["rope_freqs.weight"] = np.float32(factors)
    path = write_gguf(tmp_path / "m.gguf", "llama", scaled, metadata=metadata)
    with pytest.raises(ValueError, match="rope_freqs.weight does not hold"):
        gguf.convert(path, tmp_path / "other", "float32")
