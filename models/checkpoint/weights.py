"""safetensors to a parameter tree: every name and every shape is checked.

A projection is `[out, in]` in the file and here, with heads apart here (`[N, H, D]`, `[D, N, H]`).
"""

import contextlib
import functools
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models import sharding, transformer
from models.config import ModelConfig
from models.families import FAMILIES, MODEL_TENSORS
from models.foreign import json_file
from models.foreign.digests import Digests
from models.foreign.safetensors_file import (
    check_held_once,
    check_tensor,
    listing,
    open_file,
    read_tensor,
    tensor_files,
)

# Buffers that some checkpoints carry along and that follow from the config.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)


class Loaded(NamedTuple):
    """A parameter tree, and what it was made of."""

    params: Any
    digests: dict[pathlib.Path, str]  # SHA-256 of each file that a tensor came from


def load_params(folder: pathlib.Path, config: ModelConfig, dtype) -> Loaded:
    """The parameter tree of a Hugging Face folder, each array in `dtype`.

    On the default device, or by its rule on `config.mesh`. Tensor by tensor: host memory beyond
    the tree is about one tensor (with `scan_layers` one layer's stack). The files are hashed while
    they are read. Raises ValueError for missing, unexpected, mis-shaped or quantised tensors, and
    for numbers that are not finite; FileNotFoundError for missing files.
    """
    files = tensor_files(folder)
    wanted_names = _wanted_names(config)
    _check_names(folder, set(files), wanted_names, config)
    files = {name: files[name] for name in wanted_names}
    with contextlib.ExitStack() as stack:
        digests = stack.enter_context(Digests(files.values()))
        opened = {f: stack.enter_context(open_file(f)) for f in sorted(set(files.values()))}
        check_held_once(opened, files)
        params = _read_tree(config, jnp.dtype(dtype), opened, files)
        return Loaded(params, digests.result())


def _wanted_names(config: ModelConfig) -> set[str]:
    """The names of all tensors of a model; known without making shapes, however many layers."""
    top = {name.hf for key, name in MODEL_TENSORS.items()}
    if config.tie_embeddings:
        top.remove(MODEL_TENSORS["output"].hf)
    patterns = [name.hf for name in FAMILIES[config.family].layer_tensors.values()]
    return top | {p.format(i=i) for i in range(config.num_layers) for p in patterns}


def hf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each tensor that a Hugging Face folder must have; nothing is allocated."""
    shapes = {}
    for path, leaf in _abstract(config)[0]:
        names = _tensor_names(config, path)
        shape = leaf.shape[1:] if _stacked(config, names) else leaf.shape
        shapes |= {name: _hf_shape(name, shape) for name in names}
    return shapes


@functools.lru_cache(maxsize=4)  # a large model takes a second
def _abstract(config: ModelConfig):
    """The parameters' paths and shapes, and the structure of their tree."""
    tree = jax.eval_shape(lambda k: transformer.init_params(config, k), jax.random.key(0))
    return jax.tree_util.tree_flatten_with_path(tree)


def _read_tree(config: ModelConfig, dtype, opened, files: dict[str, pathlib.Path]):
    # All of them before the first: a config's sizes are not allocated before the files have them.
    for name, shape in hf_shapes(config).items():
        check_tensor(opened[files[name]], files[name], name, shape)
    flat, treedef = _abstract(config)

    def read(path_name: str, name: str, shape: tuple[int, ...]) -> jax.Array:
        tensor = read_tensor(opened[files[name]], files[name], name)
        return _place(config, path_name, tensor, shape, dtype)

    leaves = []
    for path, leaf in flat:
        path_name = sharding.path_name(path)
        names = _tensor_names(config, path)
        if _stacked(config, names):
            device = sharding.of(config, path_name, leaf.shape)
            stacked = jnp.zeros(leaf.shape, dtype, device=device)
            for i, name in enumerate(names):
                stacked = _set_row(stacked, read(path_name, name, leaf.shape[1:]), i)
            leaves.append(stacked)
        else:
            leaves.append(read(path_name, names[0], leaf.shape))
    return jax.tree.unflatten(treedef, leaves)


def _stacked(config: ModelConfig, names: list[str]) -> bool:
    return config.scan_layers and ".layers." in names[0]


def _tensor_names(config: ModelConfig, path) -> list[str]:
    """The tensors that a parameter is made of, several for a stack."""
    keys = [getattr(p, "key", getattr(p, "idx", None)) for p in path]
    if keys[0] != "layers":
        return [MODEL_TENSORS[keys[0]].hf]
    layers = range(config.num_layers) if config.scan_layers else [keys[1]]
    name = "/".join(keys[1:] if config.scan_layers else keys[2:])
    pattern = FAMILIES[config.family].layer_tensors[name].hf
    return [pattern.format(i=i) for i in layers]


def _check_names(folder, stored: set[str], wanted: set[str], config: ModelConfig) -> None:
    ignored = {n for n in stored if n.endswith(IGNORED_SUFFIXES)}
    if config.tie_embeddings:
        ignored.add(MODEL_TENSORS["output"].hf)  # some checkpoints store the tied matrix twice
    missing, unexpected = sorted(wanted - stored), sorted(stored - wanted - ignored)
    if missing or unexpected:
        parts = [
            f"{kind} {len(names)} tensors, such as {json_file.names(names, 3)}"
            for kind, names in (("lacks", missing), ("has unexpected", unexpected))
            if names
        ]
        raise ValueError(
            f"{listing(folder)} {' and '.join(parts)}. The config.json beside it says "
            f"{config.family} with {config.num_layers} layers: weights and config must belong "
            "together."
        )


def _hf_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor in a Hugging Face file, from the parameter's."""
    if name.endswith("_proj.weight"):  # the parameter is [out..., in...]; only o has two axes in
        split = -2 if name.endswith("o_proj.weight") else -1
        return math.prod(shape[:split]), math.prod(shape[split:])
    if name.endswith(".bias"):
        return (math.prod(shape),)
    return shape


def _place(config: ModelConfig, name: str, tensor, shape, dtype) -> jax.Array:
    if config.mesh is None:
        return _place_whole(tensor, shape, dtype)
    array = tensor.reshape(shape).astype(dtype, copy=False)
    return sharding.put(sharding.of(config, name, shape), array)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _place_whole(tensor, shape: tuple[int, ...], dtype) -> jax.Array:
    return tensor.reshape(shape).astype(dtype)


_set_row = jax.jit(lambda stack, x, i: stack.at[i].set(x), donate_argnums=0)
