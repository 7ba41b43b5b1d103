"""The published low-rank changes of the golden set, as a writer."""

import jax.numpy as jnp
import numpy as np

from models.low_rank import Factors


def published_writer(arrays, config) -> dict[str, Factors]:
    """`lora_{q,k,v,o}_A [L, r, in]` and `_B [L, out, r]` as factors."""
    writer = {}
    for name in "qkvo":
        a, b = (arrays[f"lora_{name}_{x}"].transpose(0, 2, 1) for x in "AB")
        heads = (-1, config.head_dim)
        if name == "o":
            a = a.reshape(len(a), *heads, a.shape[-1])
        else:
            b = b.reshape(*b.shape[:2], *heads)
        writer[name] = Factors(jnp.asarray(a), jnp.asarray(b))
    return writer


def as_published(factor, letter: str) -> np.ndarray:
    """A factor as `lora_…_A [L, r, in]` or `lora_…_B [L, out, r]` has it."""
    L, axes = len(factor), factor.shape
    rows = factor.reshape(L, -1, axes[-1]) if letter == "A" else factor.reshape(L, axes[1], -1)
    return np.asarray(rows).transpose(0, 2, 1)
