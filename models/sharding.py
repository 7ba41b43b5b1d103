"""How a model is laid out over many devices: the mesh, and rules beside the names they match.

A mesh has three axes. `data` runs different examples; `kv` and `rest` together hold one replica of
the model: key/value heads and caches are split over `kv`, the greatest common divisor of the
replica's devices and K; query heads, the MLP and the vocabulary over `rest` too.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from models.config import ModelConfig

DATA, KV, REST = "data", "kv", "rest"
BOTH = (KV, REST)

# A parameter's axes by their letters (DESIGN: V vocabulary, D model dim, N query heads, K key/value
# heads, H head dim, M MLP dim).
AXES = {
    "embedding": "VD",
    "output": "VD",
    "final_norm": "D",
    "attention_norm": "D",
    "mlp_norm": "D",
    "q": "NHD",
    "k": "KHD",
    "v": "KHD",
    "o": "DNH",
    "q_bias": "NH",
    "k_bias": "KH",
    "v_bias": "KH",
    "q_norm": "H",
    "k_norm": "H",
    "mlp/gate": "MD",
    "mlp/up": "MD",
    "mlp/down": "DM",
}
# What an axis may be split over, best first: the first that divides it is used, none if none does.
# D and H are never split: every product would then end in a sum over devices.
RULES = {
    "V": (BOTH, (KV,), (REST,)),
    "M": (BOTH, (KV,), (REST,)),
    "N": (BOTH, (KV,)),
    "K": ((KV,),),
}


def make_mesh(text: str, config: ModelConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh that "data:2,model:4" describes; what is not named is 1.

    Devices are taken in their order, so that one replica lies on neighbours, on one host.

    Args:
      devices: all of them if None; the first ones are used if there are more than needed.

    Raises ValueError for another spelling, for more devices than there are, or for fewer where
    several processes run together.
    """
    sizes = _sizes(text)
    devices = jax.devices() if devices is None else list(devices)
    num_devices = math.prod(sizes.values())
    if num_devices > len(devices) or (num_devices < len(devices) and jax.process_count() > 1):
        raise ValueError(
            f"--mesh={text} takes {num_devices} devices; there are {len(devices)} "
            f"({devices[0].device_kind}). data times model must be "
            + ("that many." if jax.process_count() > 1 else "at most that.")
        )
    kv = math.gcd(sizes["model"], config.num_kv_heads)
    grid = np.array(devices[:num_devices]).reshape(sizes["data"], kv, sizes["model"] // kv)
    # Auto: linen does not run on the default, Explicit.
    return Mesh(grid, (DATA, KV, REST), (AxisType.Auto,) * 3)


def _sizes(text: str) -> dict[str, int]:
    sizes = {"data": 1, "model": 1}
    for part in text.split(","):
        if not re.fullmatch(r"(data|model):[1-9]\d*", part) or sizes[part.split(":")[0]] != 1:
            raise ValueError(f"--mesh={text} is not of the form data:2,model:4.")
        name, size = part.split(":")
        sizes[name] = int(size)
    return sizes


def check_one_replica(text: str) -> None:
    """Raises ValueError for a mesh, as `make_mesh` takes it, of several replicas of the model.

    For whoever answers requests: each replica would compute the same.
    """
    sizes = _sizes(text)
    if sizes["data"] > 1:
        remedy = f"give model:{n} alone" if (n := sizes["model"]) > 1 else "leave out --mesh"
        raise ValueError(
            f"--mesh={text} has {sizes['data']} replicas of the model, which share the work of "
            f"training only: {remedy}."
        )


def num_replicas(mesh: Mesh | None) -> int:
    """Replicas of the model on a mesh."""
    return mesh.shape[DATA] if mesh else 1


def examples_per_replica(mesh: Mesh | None, batch_size: int) -> int:
    """Examples of a batch that each replica takes; ValueError if they do not divide."""
    replicas = num_replicas(mesh)
    if batch_size % replicas:
        raise ValueError(
            f"batch_size {batch_size} is not a multiple of {replicas}, the replicas of the model "
            "on this mesh: each takes one set of documents at a time."
        )
    return batch_size // replicas


def splits_groups(config: ModelConfig, mesh: Mesh) -> bool:
    """Whether query heads are split over `rest`: the heads of one key/value head divide.

    Where a device holds several key/value heads, a contiguous part of the query heads would not
    belong to them; there the query heads are not split over `rest`.
    """
    whole = mesh.shape[KV] == config.num_kv_heads or mesh.shape[REST] == 1
    return whole and config.num_groups % mesh.shape[REST] == 0


def spec(config: ModelConfig, mesh: Mesh, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    """How a parameter is split, by its name within a layer or the model ("q", "mlp/up", "output").

    `shape` may have one more axis in front, of layers. Raises ValueError for a name without a rule.
    """
    if name not in AXES:
        raise ValueError(
            f"No rule says how the parameter {name!r} is split; rules: {', '.join(AXES)}."
        )
    letters = AXES[name]
    entries: list = [None] * (len(shape) - len(letters))
    for letter, size in zip(letters, shape[len(entries) :], strict=True):
        choices = RULES.get(letter, ())
        if letter == "N" and not splits_groups(config, mesh):
            choices = ((KV,),)
        fits = [c for c in choices if size % math.prod(mesh.shape[a] for a in c) == 0]
        entries.append(fits[0] if fits else None)
    return PartitionSpec(*entries)


def path_name(path) -> str:
    """A parameter's name in `AXES` from its path in the tree of parameters."""
    keys = [str(key.key) for key in path if hasattr(key, "key")]
    return "/".join(keys[1:] if keys[0] == "layers" else keys)


def of(config: ModelConfig, name: str, shape: tuple[int, ...]) -> NamedSharding | None:
    """The sharding of a parameter on `config.mesh`; None without a mesh."""
    if config.mesh is None:
        return None
    return NamedSharding(config.mesh, spec(config, config.mesh, name, shape))


def param_shardings(config: ModelConfig, params):
    """NamedShardings on `config.mesh` like `params` (arrays or ShapeDtypeStructs)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: of(config, path_name(path), x.shape), params
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def put(sharding: NamedSharding, array: np.ndarray) -> jax.Array:
    """An array that every host has whole, each device given its part of it."""
    # Not device_put, which compares what the hosts hold: they all read it from the same file.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def constrain_heads(mesh: Mesh | None, x: jax.Array) -> jax.Array:
    """Tells the compiler to split keys or values `[..., S, K, H]` by their heads."""
    if mesh is None:
        return x
    free = PartitionSpec.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(x, heads(mesh, x.ndim, free))


def heads(mesh: Mesh, ndim: int, others=None) -> NamedSharding:
    """The sharding of keys or values `[..., S, K, H]`: by their heads, the rest by `others`."""
    return NamedSharding(mesh, PartitionSpec(*[others] * (ndim - 2), KV, None))


class Copies(NamedTuple):
    """Parameters that each replica holds more than once."""

    names: tuple[str, ...]
    copies: int  # in each replica
    bytes: int  # of one copy


def copies(config: ModelConfig, params) -> list[Copies]:
    """What a replica on `config.mesh` holds more than once, by the number of copies, ascending."""
    by_count: dict[int, tuple[set[str], int]] = {}
    devices = config.mesh.shape[KV] * config.mesh.shape[REST]
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = path_name(path)
        shard_size = math.prod(of(config, name, x.shape).shard_shape(x.shape))
        count = devices * shard_size // math.prod(x.shape)
        if count > 1:
            names, size = by_count.get(count, (set(), 0))
            by_count[count] = (names | {name}, size + math.prod(x.shape) * x.dtype.itemsize)
    return [Copies(tuple(sorted(n)), c, b) for c, (n, b) in sorted(by_count.items())]


def describe(config: ModelConfig, params) -> str:
    """`config.mesh`, and what its replicas hold more than once, in words."""
    mesh, sizes = config.mesh, dict(config.mesh.shape)
    lines = [
        f"{mesh.size} devices ({mesh.devices.flat[0].device_kind}): "
        f"{sizes[DATA]} x a model on {sizes[KV] * sizes[REST]} (kv {sizes[KV]}, rest {sizes[REST]})"
    ]
    for names, count, size in copies(config, params):
        lines.append(
            f"  {count} copies in each model of {', '.join(names)}: {size / 1e6:,.1f} MB each"
        )
    return "\n".join(lines)


def log_layout(config: ModelConfig, params, log=print) -> None:
    """Passes `describe` to `log`, if there is a mesh."""
    if config.mesh is not None:
        log(describe(config, params))


def over_examples(config: ModelConfig, function: Callable) -> Callable:
    """`jax.vmap` over examples, which a mesh spreads over its replicas."""
    return jax.vmap(function, spmd_axis_name=DATA if config.mesh else None)


def put_batch(mesh: Mesh | None, tree):
    """Host arrays with a batch axis first, each replica given its share.

    Every host gives the whole arrays. Without a mesh they stay as they are.
    """
    if mesh is None:
        return tree
    share = NamedSharding(mesh, PartitionSpec(DATA))
    return jax.tree.map(lambda x: put(share, x), tree)


def fetch(tree):
    """Device arrays whole on every host, wherever their parts lie."""
    return jax.tree.map(
        lambda x: np.asarray(
            x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)
        ),
        tree,
    )
