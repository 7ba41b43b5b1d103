"""Files that come from elsewhere: models as folders and as GGUF, and the authors' .pt adapters."""

import hashlib
import json
import pathlib
import random
import shutil
import tempfile
from collections.abc import Iterator

import jax
import numpy as np

import models
from kvpacket_jax.packets.adapter import fingerprint
from kvpacket_jax.packets.import_pt import read_pt
from tests.support import byte_model, gguf_files
from tests.support.faults import mutations
from tests.support.faults.harness import Attempt, in_file

PUBLISHED = pathlib.Path(__file__).parents[2] / "resources" / "published"
TEXT = "The ferry to Lune leaves at 7:40."


def _model(source: pathlib.Path, cache: pathlib.Path) -> tuple[str, str]:
    """What a model is known by, and what it is: identity, and digest of weights and tokens."""
    model = models.load(str(source), "float32", cache)
    content = hashlib.sha256(repr(model.config).encode())
    for array in jax.tree.leaves(model.params):
        content.update(np.asarray(array).tobytes())
    tokenizer = "none"
    if model.tokenizer:
        tokenizer = model.tokenizer.fingerprint
        content.update(repr(model.tokenizer.encode(TEXT)).encode())
    return f"{model.fingerprint} {tokenizer}", content.hexdigest()


def _is_named(right: tuple[str, str]):
    """Another model is no fault where it is known by another name."""
    return lambda found: found == right or found[0] != right[0]


def model_folder(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """A Hugging Face folder: weights, config and tokenizer, bytes and values."""
    folder.mkdir()
    source = byte_model.write(folder)
    cache = folder.with_name("cache")
    right = _model(source, cache)
    weights = source / "model.safetensors"
    texts = [source / name for name in ("config.json", "tokenizer_config.json", "tokenizer.json")]
    shares = {weights: number // 3, **dict.fromkeys(texts, number // 9)}
    shares[texts[0]] += number - sum(shares.values()) - number // 3
    for path, count in shares.items():
        for data in mutations.damaged(path.read_bytes(), rng, count):
            yield in_file(path, data, lambda: _model(source, cache), _is_named(right))
    for i in range(number // 3):
        path = texts[i % len(texts)]
        (text,) = mutations.strange_json(path.read_text(), rng, 1)
        yield in_file(path, text.encode(), lambda: _model(source, cache), _is_named(right))


def gguf(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """A GGUF file, header and tensors; it is converted each time."""
    folder.mkdir()
    tensors = gguf_files.random_tensors("qwen2")
    path = gguf_files.write_gguf(folder / "it.gguf", "qwen2", tensors)

    def read() -> tuple[str, str]:
        with tempfile.TemporaryDirectory() as cache:
            return _model(path, pathlib.Path(cache))

    right = read()
    for data in mutations.damaged(path.read_bytes(), rng, number):
        yield in_file(path, data, read, _is_named(right))


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
