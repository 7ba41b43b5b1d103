"""One door: whatever a foreign file holds, it is read or refused in one line that names it."""

import json
import os
import random
import shutil
import struct
import time

import gguf as gguf_lib
import numpy as np
import pytest

import models
from models.foreign import gguf_file, regular
from models.sources import gguf
from tests.support.gguf_files import LAYERS, random_tensors, write_gguf
from tests.support.golden import GOLDEN
from tests.support.tokenizer_files import save_tiny

READ = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
]


@pytest.fixture
def folder(tmp_path):
    """A folder with every file that is read of one."""
    path = shutil.copytree(GOLDEN / "tiny_llama31", tmp_path / "model")
    save_tiny(path, "llama-bpe")
    config = json.loads((path / "config.json").read_text())
    for name in ("generation_config.json", "special_tokens_map.json"):
        (path / name).write_text("{}")
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}{{ messages[1].content }}")
    assert config["vocab_size"] >= 300 or not config  # the tokenizer's fit
    with models.checkpoint.weights.open_file(path / "model.safetensors") as file:
        index = {"weight_map": dict.fromkeys(file.keys(), "model.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


@pytest.fixture
def gguf_path(tmp_path):
    return write_gguf(tmp_path / "m.gguf", "qwen2", random_tensors("qwen2"))


def load(path):
    return models.load(str(path), "float32", path.parent / "cache")


def refused(path, error):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=error) as raised:
        load(path)
    assert "\n" not in str(raised.value)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("name", READ)
def test_devices_pipes_and_folders_are_refused(folder, name):
    path = folder / name
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(folder, f"{name} is a device, not a file")
    path.unlink()
    os.mkfifo(folder / "pipe")
    path.symlink_to("pipe")
    refused(folder, f"{name} is a pipe, not a file")
    path.unlink()
    path.mkdir()
    refused(folder, f"{name} is a folder, not a file")


def test_a_source_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    refused(tmp_path / "m.gguf", "m.gguf is a pipe, not a file")
    (tmp_path / "text").write_text("Once upon a time")
    refused(tmp_path / "text", "text is no model: a file must be GGUF")


@pytest.mark.parametrize("name", READ[:2] + READ[4:7])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 64,
        b"[]",
        b"7",
        b'{"a": ',
        b"\xff\xfe{}",
        b"[" * 10**5,
        b'{"a":' * 10**5,
        b'{"\\ud800": 1}',
    ],
    ids=[
        "empty",
        "zeros",
        "list",
        "number",
        "cut",
        "utf16",
        "nested",
        "nested objects",
        "half a pair",
    ],
)
def test_json_that_is_none_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder, name)


def test_a_huge_file_is_not_read_whole(folder):
    with (folder / "config.json").open("r+b") as file:
        file.truncate(2**40)
    refused(folder, r"config\.json is larger than 8,388,608 bytes")


@pytest.mark.parametrize(
    "file",
    [
        "../other/model.safetensors",
        "/etc/passwd",
        "a/../../x",
        "..",
        "",
        "C:\\x",
        "..\\x",
        "x" * 999,
        7,
    ],
)
def test_an_index_names_files_of_its_folder_only(folder, file):
    index = folder / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))
    refused(folder, r"index\.json: weight_map puts .* which is no file of this folder")


@pytest.mark.parametrize("size", [2**20, 2**62, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
    refused(folder, r"model\.safetensors is not a complete safetensors file.*header")


def test_a_tokenizer_of_another_model_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    refused(folder, "has a token .* the embeddings have 100 rows")


def test_a_missing_tokenizer_is_named_before_the_weights_are_read(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json.*save_pretrained"):
        models.load_text_model(str(folder), "float32")


@pytest.mark.parametrize("name", ["sha256-0a1b", "M.GGUF", "folder/m.gguf", "a.b/m"])
def test_a_gguf_is_known_by_its_first_bytes(gguf_path, tmp_path, name):
    path = tmp_path / "other" / name
    path.parent.mkdir(parents=True)
    shutil.copy(gguf_path, path)
    source = path.parent if name.startswith("folder") else path
    assert load(source).fingerprint == load(gguf_path).fingerprint
    if name.startswith("folder"):
        shutil.copy(path, path.with_name("n.gguf"))
        refused(source, r"folder has several GGUF files: m\.gguf, n\.gguf")


def header(*parts):
    """GGUF with these parts, each a struct format and its values."""
    packed = [struct.pack("<" + form, *values) for form, *values in parts]
    return b"GGUF" + b"".join(packed) + b"\0" * 64


def key(name, kind):
    return (f"Q{len(name)}sI", len(name), name.encode(), kind)


HEADERS = {
    "version": header(("I", 1)),
    "big endian": header((">I"[1:], 3 << 24)),
    "tensors": header(("IQQ", 3, 2**60, 0)),
    "keys": header(("IQQ", 3, 0, 2**60)),
    "a key's length": header(("IQQ", 3, 0, 1), ("Q", 2**62)),
    "a text's length": header(("IQQ", 3, 0, 1), key("a", 8), ("Q", 2**63)),
    "an array": header(("IQQ", 3, 0, 1), key("a", 9), ("IQ", 0, 2**60)),
    "an array of texts": header(("IQQ", 3, 0, 1), key("a", 9), ("IQ", 8, 2**40)),
    "nesting": header(("IQQ", 3, 0, 1), key("a", 9), *[("IQ", 9, 1)] * 10**5),
    "a type": header(("IQQ", 3, 0, 1), key("a", 77)),
    "twice": header(("IQQ", 3, 0, 2), *[key("a", 0), ("B", 1)] * 2),
    "axes": header(("IQQ", 3, 1, 0), ("Q1sI", 1, b"t", 2**31)),
    "shape": header(("IQQ", 3, 1, 0), ("Q1sIQQIQ", 1, b"t", 2, 2**32, 2**32, 0, 0)),
    "no numbers": header(("IQQ", 3, 1, 0), ("Q1sIQIQ", 1, b"t", 1, 0, 0, 0)),
    "quantisation": header(("IQQ", 3, 1, 0), ("Q1sIQIQ", 1, b"t", 1, 4, 999, 0)),
    "offset": header(("IQQ", 3, 1, 0), ("Q1sIQIQ", 1, b"t", 1, 4, 0, 2**63)),
    "no utf-8": header(("IQQ", 3, 0, 1), ("Q1sI", 1, b"\xff", 0), ("B", 1)),
    "alignment": header(("IQQ", 3, 0, 1), key("general.alignment", 4), ("I", 2**31)),
    "no alignment": header(("IQQ", 3, 0, 1), key("general.alignment", 4), ("I", 0)),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_gguf_header_is_believed_no_further_than_its_file(tmp_path, name):
    path = tmp_path / "m.gguf"
    path.write_bytes(HEADERS[name])
    refused(path, r"m\.gguf is truncated or corrupt")


def offsets_at(gguf_path):
    """Where the header of a GGUF file has the offset of each tensor, by name."""
    content, at = gguf_path.read_bytes(), {}
    for tensor in gguf_file.open_file(gguf_path).tensors:
        name = key(tensor.name, len(tensor.shape))
        here = content.index(struct.pack("<" + name[0], *name[1:]))
        at[tensor.name] = here + 8 + len(tensor.name) + 4 + 8 * len(tensor.shape) + 4
    return content, at


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.attn_q.weight"])
def test_tensors_of_a_gguf_lie_one_behind_the_other(gguf_path, name):
    content, at = offsets_at(gguf_path)
    (own,) = struct.unpack_from("<Q", content, at[name])
    others = {struct.unpack_from("<Q", content, at[f"blk.{i}.attn_q.weight"])[0] for i in (0, 1)}
    for offset in (others | {own + 4, own + 32}) - {own}:
        changed = bytearray(content)
        struct.pack_into("<Q", changed, at[name], offset)
        gguf_path.write_bytes(changed)
        refused(gguf_path, rf"m\.gguf is truncated or corrupt .*{name} begins at {offset:,}")


@pytest.mark.parametrize("more", [b"\0", b"\0" * 128])
def test_nothing_follows_the_tensors_of_a_gguf(gguf_path, more):
    gguf_path.write_bytes(gguf_path.read_bytes() + more)
    refused(gguf_path, r"m\.gguf is truncated or corrupt .*its tensors end at .* and more follows")


def test_tensors_of_safetensors_lie_one_behind_the_other(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:size])
    layers = [f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)]
    header[layers[1]]["data_offsets"] = header[layers[0]]["data_offsets"]
    changed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[size:])
    refused(folder, "model.safetensors is not a complete safetensors file.*offset")


def test_arrays_beyond_all_vocabularies_are_refused(tmp_path):
    content = header(("IQQ", 3, 0, 1), key("a", 9), ("IQ", 0, 2**23)) + b"\0" * 2**23
    (tmp_path / "m.gguf").write_bytes(content)
    refused(tmp_path / "m.gguf", "declares 8,388,608 elements of a")


def test_a_gguf_is_read_as_its_library_reads_it(gguf_path):
    ours, theirs = gguf_file.open_file(gguf_path), gguf_lib.GGUFReader(gguf_path)
    their_fields = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.fields.keys() == their_fields.keys()
    for name, field in their_fields.items():
        assert ours.fields[name] == field.contents()
    assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]
    for a, b in zip(ours.tensors, theirs.tensors, strict=True):
        assert a.tensor_type == b.tensor_type and list(a.shape) == list(b.shape[::-1])
        assert a.data.dtype == b.data.dtype and (a.data == b.data).all()


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({"qwen2.block_count": 10**9}, "qwen2.block_count' must be an integer from 1 to 1,024"),
        ({"qwen2.block_count": LAYERS + 1}, "missing blk.2.attn_k.bias"),
        ({"qwen2.block_count": "2"}, "qwen2.block_count' must be an integer"),
        ({"qwen2.embedding_length": 10**9}, "qwen2.embedding_length' must be an integer"),
        ({"qwen2.attention.head_count": 0}, "qwen2.attention.head_count' must be an integer"),
        ({"qwen2.attention.key_length": 10**9}, "qwen2.attention.key_length' must be an int"),
        ({"qwen2.rope.freq_base": float("nan")}, "qwen2.rope.freq_base' must be a number"),
        ({"qwen2.expert_count": 8}, "qwen2.expert_count' is 8"),
        ({"qwen2.logit_scale": 0.5}, "qwen2.logit_scale' is 0.5. This setting is not known"),
        ({"qwen2.rope.scaling.attn_factor": 0.5}, "qwen2.rope.scaling.attn_factor' is 0.5"),
        ({"tokenizer.ggml.eog_token_ids": 5}, "eog_token_ids"),
        ({"general.type": "adapter"}, "holds a GGUF 'adapter', not a model"),
        ({"split.count": 2, "split.no": 0}, "part 1 of 2 of a split model: join them"),
        ({"tokenizer.ggml.eot_token_id": 10**6}, "eot_token_id' must be an integer from 0"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "eos_token_id' must be an integer from 0"),
        *(
            ({f"tokenizer.ggml.{name}_token_id": -1}, f"{name}_token_id' must be an integer from 0")
            for name in ("bos", "unknown", "padding", "eos")
        ),
    ],
)
def test_metadata_are_understood_or_refused(tmp_path, metadata, error):
    path = write_gguf(tmp_path / "m.gguf", "qwen2", random_tensors("qwen2"), metadata=metadata)
    refused(path, f"m.gguf cannot be converted .*{error}")


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("llama", "blk.1.attn_q.weight", (30, 32)),  # 4 heads
        ("qwen2", "blk.1.attn_q.weight", (30, 32)),
        ("qwen2", "blk.0.attn_norm.weight", (31,)),
        ("qwen2", "token_embd.weight", (400,)),
        ("qwen2", "output.weight", (32, 400)),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_its_file(tmp_path, family, name, shape):
    tensors = random_tensors(family) | {name: np.ones(shape, np.float32)}
    path = write_gguf(tmp_path / "m.gguf", family, tensors)
    refused(path, f"m.gguf cannot be converted .*{name} has shape .* the metadata ask for")
    assert not (tmp_path / "cache").exists()


def test_what_fails_while_weights_are_written_names_the_file(gguf_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("a line\nand another")

    monkeypatch.setattr(gguf, "_dequantise", fail)
    refused(gguf_path, r"m\.gguf cannot be converted \(a line and another")


def test_a_factor_without_a_type_is_linear(tmp_path):
    metadata = {"qwen2.rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "m.gguf", "qwen2", random_tensors("qwen2"), metadata=metadata)
    assert load(path).config.rope == models.rope.LinearRope(1e6, 4.0)


def test_ends_of_turn_and_message_are_stops(tmp_path):
    metadata = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 7}
    path = write_gguf(tmp_path / "m.gguf", "qwen2", random_tensors("qwen2"), metadata=metadata)
    assert {5, 7} < set(load(path).tokenizer.stop_ids)


def damaged(content, draw):
    """A few bytes changed, a part left out or doubled, or the end cut off."""
    content, at = bytearray(content), draw.randrange(len(content))
    size = draw.choice([1, 2, 8, 100])
    kind = draw.choice("flip set cut lose double".split())
    if kind == "flip":
        content[at] ^= 1 << draw.randrange(8)
    elif kind == "set":
        content[at : at + size] = draw.choice([b"\xff", b"\0", b"[", b'"', b"9"]) * size
    elif kind == "cut":
        del content[at:]
    elif kind == "lose":
        del content[at : at + size]
    else:
        content[at:at] = content[at : at + size]
    return bytes(content)


def outcome(path):
    """The fingerprint of a model, or None if it is refused as it should be."""
    try:
        return load(path).fingerprint
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and str(path.parent) in str(error), repr(error)
        return None


@pytest.mark.parametrize("name", READ)
def test_damaged_files_of_a_folder_are_read_or_refused(folder, name):
    draw, path = random.Random(name), folder / name
    content, whole = path.read_bytes(), load(folder).fingerprint
    head = 8 + int.from_bytes(content[:8], "little") if name == "model.safetensors" else None
    for _ in range(20):
        path.write_bytes(damaged(content[:head], draw) + (content[head:] if head else b""))
        fingerprint = outcome(folder)
        if name == "model.safetensors" and path.read_bytes() != content:
            assert fingerprint != whole


def test_damaged_ggufs_are_read_or_refused(gguf_path):
    draw, content = random.Random(1), gguf_path.read_bytes()
    head = len(content) - sum(t.data.nbytes for t in gguf_file.open_file(gguf_path).tensors)
    for _ in range(300):
        gguf_path.write_bytes(damaged(content[:head], draw) + content[head:])
        try:
            file = gguf_file.open_file(gguf_path)
            with regular.one_line(gguf_path, "cannot be converted"):
                config = gguf.gguf_metadata.hf_config_of(file, "float32")
                gguf.gguf_metadata.hf_names(file, config)
                gguf.tokenizer.from_gguf(file)
        except ValueError as error:
            assert "\n" not in str(error) and str(gguf_path) in str(error), repr(error)
