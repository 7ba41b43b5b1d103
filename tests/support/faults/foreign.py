"""Files that come from elsewhere: models as folders and as GGUF, and the authors' .pt adapters.

A foreign file has no checksum, so a changed number of a model is another model: that is no fault if
it is known by another name. Wrong is what no damage to a file can mean:

- other weights where no byte of a tensor changed: a header says where tensors lie, and a tensor
  that is read from another's place, twice or not at all, is none of the file's;
- a name that stays where weights, config or tokens changed;
- a change in what the damaged file does not speak of: a config does not change tokens, nor a
  tensor's bytes the settings;
- stops that are lost because their key is spelt otherwise.

What a value means (stops, the prompt) may change with it, for it is shown in what was loaded.
"""

import hashlib
import json
import pathlib
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

import models
from kvpacket_jax.packets.adapter import fingerprint
from kvpacket_jax.packets.import_pt import read_pt
from models.foreign import gguf_file
from tests.support import byte_model, gguf_files, tokenizer_files
from tests.support.faults import mutations
from tests.support.faults.harness import Attempt, in_file

PUBLISHED = pathlib.Path(__file__).parents[2] / "resources" / "published"
TEXT = "The ferry to Lune leaves at 7:40."


class Model(NamedTuple):
    """What was loaded, part by part, each as a digest or a text."""

    name: str  # what it is known by: fingerprints
    weights: str  # every tensor's bytes, whatever it is called
    config: str
    tokens: str  # of a text, as a document and as a prompt
    stops: str  # and other tokens that no document may write
    prompt: str


NAMED = {"weights", "config", "tokens"}  # parts that a packet depends on
# What a file speaks of, besides the name. Weights follow from those files alone that hold them.
SPEAKS_OF = {
    "config.json": {"config", "stops"},
    "generation_config.json": {"stops"},
    "tokenizer.json": {"tokens", "stops"},
    "tokenizer_config.json": {"tokens", "stops", "prompt"},
    "chat_template.jinja": {"prompt"},
    "model.safetensors.index.json": set(),
}


def _model(source: pathlib.Path, cache: pathlib.Path) -> Model:
    model = models.load(str(source), "float32", cache)
    arrays = [np.asarray(array) for array in jax.tree.leaves(model.params)]
    weights = sorted(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays)
    name, tokens, stops, prompt = model.fingerprint, "none", "none", "none"
    if tokenizer := model.tokenizer:
        name += tokenizer.fingerprint
        tokens = repr([tokenizer.encode(TEXT, special) for special in (False, True)])
        stops = repr((tokenizer.stop_ids, sorted(tokenizer.control_ids)))
        if tokenizer.has_chat_template:
            prompt = repr(tokenizer.chat_parts("Be brief."))
    digest = hashlib.sha256("".join(weights).encode()).hexdigest()
    return Model(name, digest, repr(model.config), tokens, stops, prompt)


def _differing(found: Model, right: Model) -> set[str]:
    return {part for part in Model._fields if getattr(found, part) != getattr(right, part)}


def _allows(right: Model, may_change: set[str]) -> Callable[[Model], bool]:
    """Whether nothing but some parts changed, and what packets depend on not without the name."""

    def is_right(found: Model) -> bool:
        changed = _differing(found, right)
        return changed <= may_change | {"name"} and ("name" in changed or not changed & NAMED)

    return is_right


def _of_tensors(whole: bytes, start: int, data: bytes, header: set[str], right: Model):
    """As `_allows`, of a file whose tensors begin at `start`; its header may change `header`."""
    if len(data) != len(whole):  # what was moved is where no header says
        return _allows(right, header)
    may_change = header if data[:start] != whole[:start] else set()
    return _allows(right, may_change | ({"weights"} if data[start:] != whole[start:] else set()))


def _of_text(path: pathlib.Path, data: bytes, right: Model) -> Callable[[Model], bool]:
    """As `_allows`, of a file of settings."""
    may_change = SPEAKS_OF[path.name]
    try:
        before, after = json.loads(path.read_bytes()), json.loads(data)
        renamed = "eos_token_id" in before and "eos_token_id" not in after
        if renamed and len(after) >= len(before):
            may_change = may_change - {"stops"}
    except (ValueError, TypeError, RecursionError):  # a template, or to be refused
        pass
    return _allows(right, may_change)


def _written(folder: pathlib.Path) -> pathlib.Path:
    """A folder with every file that is read of one."""
    source = byte_model.write(folder)
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 2], "do_sample": false}')
    (source / "chat_template.jinja").write_text(tokenizer_files.CHATML)
    with models.checkpoint.weights.open_file(source / "model.safetensors") as file:
        index = {"weight_map": dict.fromkeys(file.keys(), "model.safetensors")}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    return source


def model_folder(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """A Hugging Face folder: weights, and bytes and values of all that is text in it."""
    folder.mkdir()
    source = _written(folder)
    cache = folder.with_name("cache")
    right = _model(source, cache)
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    texts = [source / name for name in SPEAKS_OF]
    values = [path for path in texts if path.suffix == ".json"]

    def in_weights(data: bytes) -> Attempt:
        is_right = _of_tensors(whole, start, data, set(), right)
        return in_file(weights, data, lambda: _model(source, cache), is_right)

    def in_text(path: pathlib.Path, data: bytes) -> Attempt:
        is_right = _of_text(path, data, right)
        return in_file(path, data, lambda: _model(source, cache), is_right)

    # Half of the damage to weights is to their header, which is a small part of the file.
    for data in mutations.damaged(whole, rng, number // 6):
        yield in_weights(data)
    for data in mutations.damaged(whole[:start], rng, number // 6):
        yield in_weights(data + whole[start:])
    for i in range(number // 3):
        path = texts[i % len(texts)]
        (data,) = mutations.damaged(path.read_bytes(), rng, 1, first=i)
        yield in_text(path, data)
    for i in range(number - 2 * (number // 6) - number // 3):
        path = values[i % len(values)]
        (text,) = mutations.strange_json(path.read_text(), rng, 1)
        yield in_text(path, text.encode())


def gguf(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """A GGUF file, header and tensors; it is converted each time."""
    folder.mkdir()
    tensors = gguf_files.random_tensors("qwen2")
    template = {"tokenizer.chat_template": tokenizer_files.CHATML}
    path = gguf_files.write_gguf(folder / "it.gguf", "qwen2", tensors, metadata=template)

    def read() -> Model:
        with tempfile.TemporaryDirectory() as cache:
            return _model(path, pathlib.Path(cache))

    right, whole = read(), path.read_bytes()
    start = len(whole) - sum(t.data.nbytes for t in gguf_file.open_file(path).tensors)

    def attempt(data: bytes) -> Attempt:
        header = {"config", "tokens", "stops", "prompt"}
        return in_file(path, data, read, _of_tensors(whole, start, data, header, right))

    for data in mutations.damaged(whole, rng, number // 3):
        yield attempt(data)
    for data in mutations.damaged(whole[:start], rng, number // 3):
        yield attempt(data + whole[start:])
    ends = [whole.index(t.name.encode()) + len(t.name) for t in gguf_file.open_file(path).tensors]
    for i in range(number - 2 * (number // 3)):
        yield attempt(_in_tensor_info(whole, ends, rng, i))


def _in_tensor_info(whole: bytes, ends: list[int], rng: random.Random, i: int) -> bytes:
    """One of the numbers behind a tensor's name (axes, shape, type, offset) is another tensor's."""
    at, other = ends[i % len(ends)], rng.choice(ends)
    axes = int.from_bytes(whole[at : at + 4], "little")
    sizes = [(0, 4), *((4 + 8 * a, 8) for a in range(axes)), (4 + 8 * axes, 4), (8 + 8 * axes, 8)]
    place, size = sizes[-1] if i % 2 else rng.choice(sizes)
    changed = whole[other + place : other + place + size]
    if rng.random() < 0.3 or changed == whole[at + place : at + place + size]:
        number = int.from_bytes(whole[at + place : at + place + size], "little")
        changed = (number ^ (1 << rng.randrange(8 * size))).to_bytes(size, "little")
    return whole[: at + place] + changed + whole[at + place + size :]


def pt(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """An adapter as the authors save it: a zip with a pickle; torch has no digest of its arrays.

    Its zip's own checksums cover every entry, so what is read is as it was, or refused.
    """
    folder.mkdir()
    path = folder / "it.pt"
    shutil.copyfile(min(PUBLISHED.glob("*.pt"), key=lambda p: p.stat().st_size), path)

    def read() -> str:
        adapter, rest = read_pt(path)
        return fingerprint(adapter) + json.dumps(rest, sort_keys=True, default=str)

    right = read()
    for data in mutations.damaged(path.read_bytes(), rng, number):
        yield in_file(path, data, read, lambda found: found == right)
