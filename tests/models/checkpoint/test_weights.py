"""Loading weights: every parameter is its tensor, and what does not fit is refused by name."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import models
from models import identity
from models.sources import hub
from tests.support.golden import FAMILIES, GOLDEN


@pytest.fixture
def folder(tmp_path):
    """A copy of a tiny checkpoint that a test may damage."""
    return shutil.copytree(GOLDEN / "tiny_qwen3", tmp_path / "model")


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def shard(folder):
    """Splits the checkpoint in two with an index, as large ones come."""
    single = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(single)
    single.unlink()
    names, weight_map = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{i:05d}-of-00002.safetensors"
        safetensors.numpy.save_file({n: tensors[n] for n in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_number_of_a_checkpoint_is_lost(tiny, name):
    tensors = safetensors.numpy.load_file(GOLDEN / name / "model.safetensors")
    stored = np.sort(np.concatenate([t.ravel() for t in tensors.values()]))
    leaves = jax.tree.leaves(tiny(name).params)
    loaded = np.sort(np.concatenate([np.asarray(p).ravel() for p in leaves]))
    np.testing.assert_array_equal(loaded, stored)
    assert not np.array_equal(*[tiny(name).params["layers"][i]["q"] for i in (0, 1)])


def test_shards_and_dtypes_give_the_same_model(folder, tiny):
    whole = tiny("tiny_qwen3")
    shard(folder)
    for dtype in ("float32", "bfloat16"):
        params = models.load(str(folder), dtype).params
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(whole.params), strict=True):
            assert a.dtype == dtype
            np.testing.assert_array_equal(a, b.astype(dtype))


def test_a_fingerprint_is_of_the_model_alone(folder, tiny):
    base = models.load(str(folder), "float32").fingerprint
    assert base == tiny("tiny_qwen3").fingerprint
    assert base == models.load(str(folder), "bfloat16", scan_layers=True, remat=True).fingerprint
    assert base != tiny("tiny_qwen2").fingerprint

    def nudge(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"] + np.float32(1e-3)

    rewrite(folder, nudge)
    weights = models.load(str(folder), "float32").fingerprint
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert len({base, weights, models.load(str(folder), "float32").fingerprint}) == 3


def test_how_a_model_runs_is_no_part_of_it(tiny):
    config = tiny("tiny_qwen3").config
    choices = {"scan_layers": True, "remat": True, "paged_kernel": True}
    choices |= {"query_block": 1, "key_block": 1}
    found = identity.constants(config)
    assert found == identity.constants(dataclasses.replace(config, **choices))
    # Packets and adapters are bound to these: with one more or less, all of them would be refused.
    assert set(found) == set(
        "family vocab_size dim num_layers num_heads num_kv_heads head_dim mlp_dim norm_eps "
        "max_positions tie_embeddings qkv_bias qk_norm rope rope_type".split()
    )


def test_what_follows_from_the_config_may_stand_in_the_file(folder, tiny):
    rewrite(
        folder,
        lambda t: t.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
                "lm_head.weight": t["model.embed_tokens.weight"].copy(),
            }
        ),
    )
    params = models.load(str(folder), "float32").params
    assert jax.tree.structure(params) == jax.tree.structure(tiny("tiny_qwen3").params)


KEY = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t.pop(KEY), f"lacks 1 tensors, such as {KEY}.*qwen3 with 4 layers"),
        (lambda t: t.update(extra=np.ones(1)), "has unexpected 1 tensors, such as extra"),
        (
            lambda t: t.update({KEY.replace("weight", "bias"): np.ones(32, np.float32)}),
            "has unexpected 1 tensors, such as .*k_proj.bias",
        ),
        (
            lambda t: t.update({KEY: np.ones((32, 47), np.float32)}),
            rf"{KEY} has shape \[32, 47\], the config asks for \[32, 48\]",
        ),
        # The right number of elements, but transposed.
        (lambda t: t.update({KEY: t[KEY].T.copy()}), rf"{KEY} has shape \[48, 32\]"),
        (lambda t: t.update({"model.norm.weight": np.ones((48, 1), np.float32)}), "model.norm"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, error):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=error):
        models.load(str(folder), "float32")


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_numbers_that_are_not_finite_are_refused(folder, dtype, bad):
    def spoil(tensors):
        tensors[KEY] = tensors[KEY].astype(dtype)
        tensors[KEY][3, 5] = bad

    rewrite(folder, spoil)
    with pytest.raises(ValueError, match=f"{KEY} holds numbers that are not finite"):
        models.load(str(folder), "float32")


def test_numbers_that_bfloat16_cannot_hold_are_refused(folder):
    rewrite(folder, lambda t: t.update({KEY: np.full((32, 48), -3.4e38, np.float32)}))
    with pytest.raises(ValueError, match=f"{KEY} holds numbers that are not finite"):
        models.load(str(folder), "bfloat16")


@pytest.mark.parametrize("scan_layers", [False, True])
def test_nothing_is_allocated_for_a_config_that_the_weights_do_not_fit(
    folder, monkeypatch, scan_layers
):
    config = json.loads((folder / "config.json").read_text())
    changed = config | {"intermediate_size": config["intermediate_size"] * 2}
    (folder / "config.json").write_text(json.dumps(changed))

    def never(*_):
        raise AssertionError("a tensor was read before all shapes were compared")

    def small(shape, *arguments, **named):
        assert np.prod(shape) < 2**10, "memory was taken before all shapes were compared"
        return zeros(shape, *arguments, **named)

    zeros = jax.numpy.zeros
    monkeypatch.setattr(models.checkpoint.weights, "read_tensor", never)
    monkeypatch.setattr(jax.numpy, "zeros", small)
    with pytest.raises(ValueError, match="mlp.* has shape .* the config asks for"):
        models.load(str(folder), "float32", scan_layers=scan_layers)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool", ml_dtypes.float8_e4m3fn])
def test_quantised_weights_are_refused(folder, dtype):
    rewrite(folder, lambda t: t.update({KEY: np.abs(t[KEY]).astype(dtype)}))
    with pytest.raises(ValueError, match=f"{KEY} is stored as .*weights are read as F64, F32"):
        models.load(str(folder), "float32")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_floats_of_other_widths_are_read(folder, tiny, dtype):
    rewrite(folder, lambda t: t.update({KEY: t[KEY].astype(dtype)}))
    actual = models.load(str(folder), "float32").params["layers"][1]["k"]
    np.testing.assert_allclose(actual, tiny("tiny_qwen3").params["layers"][1]["k"], rtol=1e-3)


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, -1])
def test_a_file_cut_short_is_refused(folder, kept):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match="not a complete safetensors file.*fetch it again"):
        models.load(str(folder), "float32")


def test_missing_files_are_named(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="names model-00002-of-00002.safetensors, not fo"):
        models.load(str(folder), "float32")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor .*it has config"):
        models.load(str(folder), "float32")
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        models.load(str(folder), "float32")


def test_a_hub_id_without_network_is_refused_at_once(monkeypatch, tmp_path):
    attempts = []

    def unreachable(address, timeout):
        attempts.append(address)
        raise OSError("Network is unreachable")

    def never(repo, local_files_only=False, **_):
        if not local_files_only:
            raise AssertionError("the client would go on trying for half a minute")
        raise hub.huggingface_hub.errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr(hub.socket, "create_connection", unreachable)
    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", never)
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ConnectionError, match="nobody/nothing .* cannot be reached .*hf download"):
        models.load("nobody/nothing", "float32", tmp_path)
    assert len(attempts) == 1
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        models.load("nobody/nothing", "float32", tmp_path)
    assert len(attempts) == 1


def test_unknown_sources_and_dtypes_say_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"did you mean qwen2\.5-coder-0\.5b.*hub id"):
        models.load("qwen2.5-coder-0.5", "float32", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.gguf"):
        models.load(str(tmp_path / "absent.gguf"), "float32", tmp_path)
    with pytest.raises(ValueError, match="'float16' is not one of auto, float32, bfloat16"):
        models.load(str(GOLDEN / "tiny_qwen3"), "float16")
