"""random:NAME: the shape of a named config with random weights, to measure what a model costs.

Costs do not depend on what the weights are, so a model can be measured without its weights. Its
answers mean nothing.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models import identity, sharding, transformer
from models.config import ModelConfig
from models.families import CONFIGS
from models.names import did_you_mean

PREFIX = "random:"
DRAW = 2  # raise it where the same shape gets other weights


def is_random(source: str) -> bool:
    """Whether a source names a shape: "random:NAME"."""
    return str(source).startswith(PREFIX)


def shape(source: str) -> ModelConfig:
    """The config that "random:NAME" names. Raises ValueError with the names there are."""
    name = source.removeprefix(PREFIX)
    if name not in CONFIGS:
        close = did_you_mean(name, CONFIGS, count=3, cutoff=0.4)
        raise ValueError(
            f"There is no named shape {name!r} for {PREFIX}{name}{close}. "
            f"Shapes: {', '.join(CONFIGS)}."
        )
    return CONFIGS[name]


def fingerprint(config: ModelConfig) -> str:
    """Identifies what `params` returns: up to 64 characters that begin with "random"."""
    drawn = {"draw": DRAW} | ({"scanned": True} if config.scan_layers else {})  # stacked layers
    return f"random-{identity.digest(identity.constants(config) | drawn)}"[:64]


def params(config: ModelConfig, dtype: Any):
    """Random parameters, always the same ones, in `dtype`, made on the devices they belong to.

    Uniform with the standard deviations of `transformer.init_params`, so activations stay finite;
    norms are 1, biases 0. No array is held in another dtype, and arrays of one shape share a
    program.
    """
    shapes = jax.eval_shape(
        lambda key: transformer.init_params(config, key, dtype), jax.random.key(0)
    )
    flat, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    leaves = []
    for i, (path, leaf) in enumerate(flat):
        name = path[-1].key
        device = sharding.of(config, sharding.path_name(path), leaf.shape)
        stacked = config.scan_layers and path[0].key == "layers"
        if name.endswith("norm"):
            leaves.append(jnp.ones(leaf.shape, dtype, device=device))
        elif name.endswith("bias"):
            leaves.append(jnp.zeros(leaf.shape, dtype, device=device))
        else:
            std = _std(name, leaf.shape[stacked:])
            draw = jax.jit(_draw, static_argnums=(0, 1), out_shardings=device)
            leaves.append(draw(leaf.shape, leaf.dtype, np.uint32(i), std * math.sqrt(3)))
    return jax.tree.unflatten(treedef, leaves)


def _std(name: str, shape: tuple[int, ...]) -> float:
    if name in ("embedding", "output"):
        return 0.02
    inputs = 2 if name == "o" else 1  # [D, N, H]; the others have one axis of inputs
    return math.prod(shape[-inputs:]) ** -0.5


def _draw(shape: tuple[int, ...], dtype, seed, limit) -> jax.Array:
    """Uniform in ±limit: a hash of each number's place, many times faster than jax.random."""
    x = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape) + seed * jnp.uint32(0x9E3779B9)
    # "lowbias32" of github.com/skeeto/hash-prospector.
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    x = x ^ (x >> 15)
    signed = jax.lax.bitcast_convert_type(x, jnp.int32).astype(jnp.float32)
    return (signed * (limit * 2.0**-31)).astype(dtype)
