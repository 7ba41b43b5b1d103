"""Distiller: learns which tokens of a document a packet keeps (KV-Distill, arXiv 2503.10337).

A scorer reads what the first quarter of the layers makes of each token. The tokens with the best
scores are kept, the same ones by all heads and layers, and run through the other layers with
low-rank changes of their own to W_Q and W_O, so that they can take up what the others held. All of
it is conditioned on the share that is kept: one distiller serves every share.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models import low_rank
from models.config import ModelConfig
from models.low_rank import Factors
from models.precision import product
from models.transformer import rms_norm

MATRICES = ("q", "o")


class Distiller(NamedTuple):
    """A scorer of one hidden layer of width W, and the kept tokens' changes; float32."""

    hidden: jax.Array  # [D, W]
    share: jax.Array  # [W]: what is added to the hidden layer, times the share that is kept
    out: jax.Array  # [W]
    kept: dict[str, Factors]  # of MATRICES; those of the first layers, which score, are not read


def init(config: ModelConfig, key: jax.Array, rank: int) -> Distiller:
    """Random scores, and changes of this rank that change nothing yet."""
    D, W = config.dim, 4 * rank
    keys = jax.random.split(key, 4)
    normal = lambda k, shape, n: jax.random.normal(k, shape, jnp.float32) / jnp.sqrt(n)  # noqa: E731
    return Distiller(
        normal(keys[0], (D, W), D),
        normal(keys[1], (W,), 1),
        normal(keys[2], (W,), W),
        low_rank.init(config, keys[3], rank, MATRICES),
    )


def first_layers(config: ModelConfig) -> range:
    """The layers that the scorer sees the output of: a quarter, with those that share with it."""
    quarter = max(config.num_layers // 4, 1)
    return range(next(step.stop for step in config.steps() if step.stop >= quarter))


def scores(distiller: Distiller, x_BxTxD: jax.Array, share_B: jax.Array) -> jax.Array:
    """The tokens' scores, float32 `[B, T]`; `share_B` is the share of slots that is kept."""
    x = rms_norm(x_BxTxD, jnp.ones(x_BxTxD.shape[-1]), 1e-6)
    hidden = product("BTD,DW->BTW", x, distiller.hidden)
    hidden = jax.nn.gelu(hidden + (share_B[:, None] * distiller.share)[:, None])
    return product("BTW,W->BT", hidden, distiller.out)
