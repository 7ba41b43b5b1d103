"""Matrix products: the one place where their dtype and precision are decided."""

import jax
import jax.numpy as jnp

from models.low_rank import Changed

# oneDNN's bfloat16 kernels want several rows: a product of one row took 4 times longer than one of
# eight on a CPU with AVX512_BF16, and a decoding step has a single row.
CPU_BF16_ROWS = 8


def product(spec: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """`einsum(spec, x, w)` with operands in `w`'s dtype and a float32 result.

    With float32 operands all passes are made (`highest`): GPUs and TPUs round them to TF32 or
    bfloat16 otherwise.
    """
    precision = jax.lax.Precision.HIGHEST if w.dtype == jnp.float32 else None
    return jnp.einsum(
        spec, x.astype(w.dtype), w, precision=precision, preferred_element_type=jnp.float32
    )


def project(spec: str, x_BxTxX: jax.Array, w: jax.Array | Changed) -> jax.Array:
    """`product` of activations `[B, T, ...]` with a weight, its low-rank change included."""
    if isinstance(w, Changed):
        operands, out = spec.split("->")
        x_axes, w_axes = operands.split(",")
        contracted = "".join(axis for axis in w_axes if axis in x_axes)
        new = "".join(axis for axis in w_axes if axis not in x_axes)
        dtype = w.weight.dtype
        low = project(f"{x_axes},{contracted}R->BTR", x_BxTxX, w.a.astype(dtype))
        change = project(f"BTR,R{new}->{out}", low, w.b.astype(dtype))
        return project(spec, x_BxTxX, w.weight) + change
    B, T = x_BxTxX.shape[:2]
    short = w.dtype == jnp.bfloat16 and B * T < CPU_BF16_ROWS
    if not (short and jax.default_backend() == "cpu"):
        return product(spec, x_BxTxX, w)
    rows = -(-CPU_BF16_ROWS // B)
    padding = [(0, 0), (0, rows - T)] + [(0, 0)] * (x_BxTxX.ndim - 2)
    return product(spec, jnp.pad(x_BxTxX, padding), w)[:, :T]
