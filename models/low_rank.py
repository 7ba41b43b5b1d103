"""Low-rank changes to weight matrices (LoRA, arXiv 2106.09685), applied without merging them.

A change is a pair of factors for one of a layer's matrices. Attached, it travels in the parameters
in the matrix's place, and every product with it adds `(x a) b`: the same modules run with it and
without, and gradients never need an array of a whole matrix's size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Matrix -> (axes that a product contracts, axes that it puts out).
MATRICES = {
    "q": ("D", "NH"),
    "k": ("D", "KH"),
    "v": ("D", "KH"),
    "o": ("NH", "D"),
    "gate": ("D", "M"),
    "up": ("D", "M"),
    "down": ("M", "D"),
}
IN_MLP = ("gate", "up", "down")


class Factors(NamedTuple):
    """A change `a b` of one matrix in every layer; float32."""

    a: jax.Array  # [L, *contracted axes, R]
    b: jax.Array  # [L, R, *axes put out]


class Changed(NamedTuple):
    """A matrix with its change, in the matrix's place among the parameters."""

    weight: "jax.Array | Changed"
    a: jax.Array
    b: jax.Array
    rows: jax.Array | None = None  # [B, T]: 1 for rows that are changed, 0 for others; None: all

    @property
    def dtype(self):
        return self.weight.dtype


def init(config, key: jax.Array, rank: int, names: tuple[str, ...]) -> dict[str, Factors]:
    """Factors that change nothing yet: `a` is normal with variance 1 / inputs, `b` is zero.

    Raises ValueError for a name that is not in MATRICES.
    """
    if unknown := [n for n in names if n not in MATRICES]:
        raise ValueError(f"No matrix {', '.join(unknown)}; a layer has {', '.join(MATRICES)}.")
    sizes = {
        "D": config.dim,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "M": config.mlp_dim,
    }
    factors = {}
    for i, name in enumerate(MATRICES):  # a matrix's draw does not depend on which others change
        if name not in names:
            continue
        inputs, outputs = (tuple(sizes[axis] for axis in axes) for axes in MATRICES[name])
        L = config.num_layers
        a = jax.random.normal(jax.random.fold_in(key, i), (L, *inputs, rank))
        scale = jnp.sqrt(jnp.prod(jnp.array(inputs)))
        factors[name] = Factors(a / scale, jnp.zeros((L, rank, *outputs)))
    return factors


def scaled(factors: dict[str, Factors], share: float) -> dict[str, Factors]:
    """The same changes, `share` times as large."""
    return {name: Factors(a, share * b) for name, (a, b) in factors.items()}


def weighted_sum(
    changes: Sequence[dict[str, Factors]], shares: Sequence[float], rank: int
) -> dict[str, Factors]:
    """The sum of changes of the same matrices, each times its share, as near as `rank` allows.

    Layer by layer the nearest change of that rank in the Frobenius norm: by QR of the factors that
    stand side by side, and the singular values of what is between them. float64 on the host, then
    float32. A rank above the sum of the changes' own makes no larger factors.

    Raises ValueError for changes of different matrices or sizes.
    """
    first = changes[0]
    sizes = [{n: (f.a.shape[:-1], f.b.shape[2:]) for n, f in c.items()} for c in changes]
    if any(s != sizes[0] for s in sizes):
        raise ValueError("The changes are of different matrices, or of models of different sizes.")
    summed = {}
    for name, (a, b) in first.items():
        inputs, outputs = a.shape[1:-1], b.shape[2:]
        factors = [
            (
                np.asarray(c[name].a, np.float64).reshape(len(a), -1, c[name].a.shape[-1]),
                share * np.asarray(c[name].b, np.float64).reshape(len(a), c[name].b.shape[1], -1),
            )
            for c, share in zip(changes, shares, strict=True)
        ]
        left, inner = np.linalg.qr(np.concatenate([a for a, _ in factors], axis=-1))
        right, outer = np.linalg.qr(
            np.concatenate([b for _, b in factors], axis=1).transpose(0, 2, 1)
        )
        u, values, v = np.linalg.svd(inner @ outer.transpose(0, 2, 1), full_matrices=False)
        root = np.sqrt(values[:, :rank])
        a = (left @ u[:, :, :rank]) * root[:, None, :]
        b = root[:, :, None] * (v[:, :rank] @ right.transpose(0, 2, 1))
        summed[name] = Factors(
            jnp.asarray(a.reshape(len(a), *inputs, -1), jnp.float32),
            jnp.asarray(b.reshape(*b.shape[:2], *outputs), jnp.float32),
        )
    return summed


def attach(params, factors: dict[str, Factors], rows_BxT: jax.Array | None = None):
    """Parameters of a Transformer with the changed matrices as `Changed`; the others as they are.

    Works on per-layer parameters, on stacked ones, and on those that are changed already.

    Args:
      rows_BxT: the rows of the pass that are changed, 1 or 0; all if None.
    """
    layers = params["layers"]
    if isinstance(layers, tuple):
        changed = tuple(
            _attach_layer(layer, jax.tree.map(lambda x, i=i: x[i], factors), rows_BxT)
            for i, layer in enumerate(layers)
        )
    else:
        if rows_BxT is not None:  # once for each layer, as all that is walked
            number = jax.tree.leaves(factors)[0].shape[0]
            rows_BxT = jnp.broadcast_to(rows_BxT, (number, *rows_BxT.shape))
        changed = _attach_layer(layers, factors, rows_BxT)
    return {**params, "layers": changed}


def _attach_layer(layer, factors: dict[str, Factors], rows):
    layer, mlp = dict(layer), dict(layer["mlp"])
    for name, (a, b) in factors.items():
        home = mlp if name in IN_MLP else layer
        home[name] = Changed(home[name], a, b, rows)
    return layer | {"mlp": mlp}
