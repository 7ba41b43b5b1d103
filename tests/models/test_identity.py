"""What a model is known by: the bytes of its tensors, whatever is noted beside them."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import models
from models.disk import partial
from models.sources import gguf
from tests.support.gguf_files import random_tensors, write_gguf
from tests.support.golden import GOLDEN

NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(GOLDEN / "tiny_qwen3", tmp_path / "model")


@pytest.fixture
def gguf_file(tmp_path):
    return write_gguf(tmp_path / "m.gguf", "qwen2", random_tensors("qwen2"))


def fingerprint(folder, cache_dir=None):
    return models.load(str(folder), "float32", cache_dir).fingerprint


def nudge(path):
    """Another number in a file of the same size and time."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-4] ^= 1  # the last bit of its last float32
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_weights_of_the_same_size_and_time_are_another_model(folder, tmp_path):
    before = fingerprint(folder, tmp_path / "cache")
    nudge(folder / "model.safetensors")
    assert fingerprint(folder, tmp_path / "cache") != before


@pytest.mark.parametrize("file", ["weights.bin", "parts/one.safetensors"])
def test_weights_count_under_any_name(folder, file):
    single, path = folder / "model.safetensors", folder / file
    names = safetensors.numpy.load_file(single)
    path.parent.mkdir(exist_ok=True)
    before = fingerprint(folder)
    single.rename(path)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, file)})
    )
    assert fingerprint(folder) == before
    nudge(path)
    assert fingerprint(folder) != before


def test_files_that_are_not_loaded_do_not_count(folder):
    before = fingerprint(folder)
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert fingerprint(folder) == before


def test_a_tensor_that_two_files_hold_is_refused(folder):
    single = folder / "model.safetensors"
    names = list(safetensors.numpy.load_file(single))
    single.rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    weight_map = dict.fromkeys(names, "a.safetensors") | {NORM: "b.safetensors"}
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"safetensors both hold model\."):
        fingerprint(folder)


def test_files_that_change_while_they_are_read_are_refused(folder, monkeypatch):
    read_tree = models.checkpoint.weights._read_tree

    def meanwhile(*args):
        nudge(folder / "model.safetensors")
        os.utime(folder / "model.safetensors", (1, 1))
        return read_tree(*args)

    monkeypatch.setattr(models.checkpoint.weights, "_read_tree", meanwhile)
    with pytest.raises(ValueError, match=r"model\.safetensors changed while it was read"):
        fingerprint(folder)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def a_note_of_before(folder):
    note = json.loads((folder / "source.json").read_text())
    del note["files"]
    (folder / "source.json").write_text(json.dumps(note))


def another_source(folder):
    note = json.loads((folder / "source.json").read_text())
    (folder / "source.json").write_text(json.dumps(note | {"sha256": "0" * 64}))


def another_file(folder):
    path = write_gguf(folder.parent / "o.gguf", "qwen2", random_tensors("qwen2", seed=1))
    shutil.rmtree(folder)
    gguf.convert(path, folder, "float32", progress=False)
    path.unlink()


DAMAGE = {
    "a flipped bit": lambda folder: flip(folder / "model-00001-of-00001.safetensors"),
    "an emptied file": lambda folder: (folder / "model-00001-of-00001.safetensors").write_text(""),
    "a file that has gone": lambda folder: (folder / "model-00001-of-00001.safetensors").unlink(),
    "another config": lambda folder: flip(folder / "config.json"),
    "another tokenizer": lambda folder: flip(folder / "tokenizer.json"),
    "a damaged index": lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
    "an added file": lambda folder: (folder / "generation_config.json").write_text("{}"),
    "no note": lambda folder: (folder / "source.json").unlink(),
    "a note that is no JSON": lambda folder: (folder / "source.json").write_text("\0" * 90),
    "a note without digests": a_note_of_before,
    "a note of another source": another_source,
    "the folder of another file": another_file,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_conversion_that_changed_is_made_again(gguf_file, tmp_path, damage, capsys):
    cache = tmp_path / "cache"
    whole = models.load(str(gguf_file), "float32", cache)
    (folder,) = cache.iterdir()
    DAMAGE[damage](folder)
    again = models.load(str(gguf_file), "float32", cache)
    assert "is made again" in capsys.readouterr().err
    assert again.fingerprint == whole.fingerprint
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [p.name for p in cache.iterdir()] == [folder.name]
    assert models.load(str(gguf_file), "bfloat16", cache).fingerprint == whole.fingerprint
    # By its folder a conversion is what it is called by its source, unless it was rounded.
    rounded = next(str(p) for p in cache.iterdir() if p.name.endswith("bfloat16"))
    assert fingerprint(folder, cache) == whole.fingerprint != fingerprint(rounded, cache)
    assert models.load(rounded, "bfloat16", cache).fingerprint == whole.fingerprint
    assert not capsys.readouterr().err.count("is made again")


def test_the_note_of_another_conversion_is_not_believed(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        path = write_gguf(tmp_path / f"{name}.gguf", "qwen2", random_tensors("qwen2", seed=seed))
        gguf.convert(path, tmp_path / name, "float32", progress=False)
    (tmp_path / "b" / "source.json").write_text((tmp_path / "a" / "source.json").read_text())
    with pytest.raises(ValueError, match=r"b: model-.* has changed since it was converted"):
        fingerprint(tmp_path / "b", tmp_path)
    another_source(tmp_path / "a")
    with pytest.raises(ValueError, match=r"a: source\.json has changed since it was converted"):
        fingerprint(tmp_path / "a", tmp_path)
    # Outside of the cache a note is no more than a file.
    assert fingerprint(tmp_path / "b", tmp_path / "c") != fingerprint(
        tmp_path / "a", tmp_path / "c"
    )
    (tmp_path / "b" / "source.json").write_text("[]")
    assert fingerprint(tmp_path / "b", tmp_path / "c")


def test_what_killed_processes_left_is_removed(gguf_file, tmp_path):
    cache = tmp_path / "cache"
    models.load(str(gguf_file), "float32", cache)
    (folder,) = cache.iterdir()
    shutil.rmtree(folder)
    left = cache / f"{folder.name}.{partial._host()}.0a1b.partial"
    old = cache / f"{folder.name}.0a1b.partial"
    recent = cache / f"{folder.name}.another-host.0a1b.partial"
    for path in (left, old, recent):
        path.mkdir()
    os.utime(old, (1, 1))
    with partial.folder(folder) as written:  # by somebody else, still
        models.load(str(gguf_file), "float32", cache)
        assert set(cache.iterdir()) == {folder, recent, written}
    assert set(cache.iterdir()) == {folder, recent}


def test_a_file_that_changes_while_it_is_converted_is_refused(gguf_file, tmp_path, monkeypatch):
    write = gguf._write_weights

    def meanwhile(*args):
        write(*args)
        nudge(gguf_file)

    monkeypatch.setattr(gguf, "_write_weights", meanwhile)
    with pytest.raises(ValueError, match=r"m\.gguf changed while it was converted"):
        fingerprint(gguf_file, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
