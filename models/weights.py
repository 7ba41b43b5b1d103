"""safetensors to a parameter tree: every name and every shape is checked.

Hugging Face stores a projection as `[out, in]`, we as `[in..., out...]` with heads apart (kernels
`[D, N, H]`, `[N, H, D]`, `[D, M]`), so each is transposed and reshaped on its way. Embedding,
output, norms and biases keep their order.
"""

import contextlib
import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import safetensors

from models import sharding, transformer
from models.config import ModelConfig
from models.families import FAMILIES, MODEL_TENSORS

KERNELS = {"q", "k", "v", "o", "mlp/gate", "mlp/up", "mlp/down"}
# Buffers that some checkpoints carry along and that follow from the config.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)


def tensor_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Tensor name -> the safetensors file of `folder` that holds it.

    Raises FileNotFoundError or ValueError, naming what is missing or damaged.
    """
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.exists():
        try:
            names = json.loads(index.read_text())["weight_map"]
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(
                f"{index} is not an index of tensors ({error}): fetch it again."
            ) from error
        missing = sorted({f for f in names.values() if not (folder / f).exists()})
        if missing:
            raise FileNotFoundError(
                f"{index} names {', '.join(missing)}, not found beside it. The download is "
                "incomplete: fetch the missing files, or remove the folder and fetch it again."
            )
        return {name: folder / file for name, file in names.items()}
    if not single.exists():
        raise FileNotFoundError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json; it has "
            f"{', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'}."
        )
    with _open(single) as file:
        return dict.fromkeys(file.keys(), single)


@contextlib.contextmanager
def _open(path: pathlib.Path):
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}). It is damaged or cut short: "
            "fetch it again."
        ) from error
    with file:
        yield file


def load_params(folder: pathlib.Path, config: ModelConfig, dtype):
    """The parameter tree of a Hugging Face folder, each array in `dtype`.

    On the default device, or by its rule on `config.mesh`. Tensor by tensor: host memory beyond
    the tree is about one tensor (with `scan_layers` one layer's stack). Raises ValueError for
    missing, unexpected or mis-shaped tensors.
    """
    files = tensor_files(folder)
    shapes = jax.eval_shape(lambda k: transformer.init_params(config, k), jax.random.key(0))
    flat, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    wanted = [_tensor_names(config, path) for path, _ in flat]
    _check_names(folder, set(files), {name for names, _ in wanted for name in names}, config)
    with contextlib.ExitStack() as stack:
        opened = {f: stack.enter_context(_open(f)) for f in set(files.values())}

        def read(path_name: str, name: str, shape: tuple[int, ...], kernel: bool) -> jax.Array:
            view = opened[files[name]]
            if name not in view.keys():  # noqa: SIM118 (a file, not a dict)
                raise ValueError(
                    f"{files[name]} lacks {name}, which the index says it holds. The files are of "
                    "different downloads: fetch them again."
                )
            stored, expected = tuple(view.get_slice(name).get_shape()), _hf_shape(name, shape)
            if stored != expected:
                raise ValueError(
                    f"{files[name]}: {name} has shape {list(stored)}, the config asks for "
                    f"{list(expected)}. Weights and config.json are of different models."
                )
            return _place(config, path_name, view.get_tensor(name), shape, jnp.dtype(dtype), kernel)

        leaves = []
        for (path, leaf), (names, kernel) in zip(flat, wanted, strict=True):
            path_name = sharding.path_name(path)
            if _stacked(config, names):
                device = sharding.of(config, path_name, leaf.shape)
                stacked = jnp.zeros(leaf.shape, dtype, device=device)
                for i, name in enumerate(names):
                    stacked = _set_row(stacked, read(path_name, name, leaf.shape[1:], kernel), i)
                leaves.append(stacked)
            else:
                leaves.append(read(path_name, names[0], leaf.shape, kernel))
    return jax.tree.unflatten(treedef, leaves)


def _stacked(config: ModelConfig, names: list[str]) -> bool:
    return config.scan_layers and ".layers." in names[0]


def _tensor_names(config: ModelConfig, path) -> tuple[list[str], bool]:
    """The tensors a parameter is made of (several for a stack), and whether it is a kernel."""
    keys = [getattr(p, "key", getattr(p, "idx", None)) for p in path]
    if keys[0] != "layers":
        return [MODEL_TENSORS[keys[0]].hf], False
    layers = range(config.num_layers) if config.scan_layers else [keys[1]]
    name = "/".join(keys[1:] if config.scan_layers else keys[2:])
    pattern = FAMILIES[config.family].layer_tensors[name].hf
    return [pattern.format(i=i) for i in layers], name in KERNELS


def _check_names(folder, stored: set[str], wanted: set[str], config: ModelConfig) -> None:
    ignored = {n for n in stored if n.endswith(IGNORED_SUFFIXES)}
    if config.tie_embeddings:
        ignored.add(MODEL_TENSORS["output"].hf)  # some checkpoints store the tied matrix twice
    missing, unexpected = sorted(wanted - stored), sorted(stored - wanted - ignored)
    if missing or unexpected:
        parts = [
            f"{kind} {len(names)} tensors, such as {', '.join(names[:3])}"
            for kind, names in (("lacks", missing), ("has unexpected", unexpected))
            if names
        ]
        raise ValueError(
            f"{folder} {' and '.join(parts)}. Its config.json says {config.family} with "
            f"{config.num_layers} layers: weights and config must belong together."
        )


def _hf_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor in a Hugging Face file, from the parameter's."""
    if name.endswith("_proj.weight"):  # the parameter is [in..., out...]; only o has two input axes
        split = 2 if name.endswith("o_proj.weight") else 1
        return math.prod(shape[split:]), math.prod(shape[:split])
    if name.endswith(".bias"):
        return (math.prod(shape),)
    return shape


def _place(config: ModelConfig, name: str, tensor, shape, dtype, kernel: bool) -> jax.Array:
    if config.mesh is None:
        return _place_whole(tensor, shape, dtype, kernel)
    array = (tensor.T if kernel else tensor).reshape(shape).astype(dtype, copy=False)
    return sharding.put(sharding.of(config, name, shape), array)


@functools.partial(jax.jit, static_argnames=("shape", "dtype", "kernel"))
def _place_whole(tensor, shape: tuple[int, ...], dtype, kernel: bool) -> jax.Array:
    return (tensor.T if kernel else tensor).reshape(shape).astype(dtype)


_set_row = jax.jit(lambda stack, x, i: stack.at[i].set(x), donate_argnums=0)
