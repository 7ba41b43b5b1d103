"""Matrix products: the one place where their dtype and precision are decided."""

import functools
import math
import pathlib
import re

import jax
import jax.numpy as jnp

from models.low_rank import Changed

# A single row of bfloat16 is computed as two. XLA for CPUs has no kernel for one, on either side of
# a product: it took 8 times longer. XLA for GPUs takes it in float32, for which cuBLAS needs the
# whole matrix widened, at every call.
BF16_ROWS = 2
FEW_ROWS = 32  # up to so many, a product takes about as long as reading its weight


def product(spec: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """`einsum(spec, x, w)` with operands in `w`'s dtype and a float32 result.

    With float32 operands the precision is `highest`: GPUs and TPUs would otherwise round them to
    TF32 or bfloat16.
    """
    if w.dtype == jnp.float32:
        return jnp.einsum(spec, x.astype(w.dtype), w, precision=jax.lax.Precision.HIGHEST)
    return _low_product(spec, x.astype(w.dtype), w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _low_product(spec: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """`einsum(spec, x, w)` of 16-bit operands with a float32 result; backwards in 16 bits too.

    Left to itself the backward pass multiplies float32 cotangents with weights that are widened
    to float32 first: several times slower on every device.
    """
    return jnp.einsum(spec, x, w, preferred_element_type=jnp.float32)


def _low_product_forward(spec, x, w):
    return _low_product(spec, x, w), (x, w)


def _low_product_backward(spec, operands, cotangent):
    x, w = operands
    axes, out = spec.split("->")
    x_axes, w_axes = axes.split(",")
    low = cotangent.astype(w.dtype)
    to = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    return (
        to(f"{out},{w_axes}->{x_axes}", low, w).astype(x.dtype),
        to(f"{x_axes},{out}->{w_axes}", x, low).astype(w.dtype),
    )


_low_product.defvjp(_low_product_forward, _low_product_backward)


def project(spec: str, x_BxTxX: jax.Array, w: jax.Array | Changed) -> jax.Array:
    """`product` of activations `[B, T, ...]` with a weight, its low-rank change included."""
    if isinstance(w, Changed):
        operands, out = spec.split("->")
        x_axes, w_axes = operands.split(",")
        contracted = "".join(axis for axis in w_axes if axis in x_axes)
        new = "".join(axis for axis in w_axes if axis not in x_axes)
        dtype = w.dtype
        low = project(f"{x_axes},{contracted}R->BTR", x_BxTxX, w.a.astype(dtype))
        change = project(f"BTR,R{new}->{out}", low, w.b.astype(dtype))
        if w.rows is not None:
            change *= w.rows.reshape(*w.rows.shape, *[1] * len(new))
        return project(spec, x_BxTxX, w.weight) + change
    return _project(spec, x_BxTxX, w)


def _project(spec: str, x_BxTxX: jax.Array, w: jax.Array) -> jax.Array:
    """`project` with a plain weight `[out..., in...]` or `[in..., out...]`: a product of matrices.

    XLA for CPUs copies a weight with two contracted axes, the attention's output, at every call.
    """
    operands, out = spec.split("->")
    x_axes, w_axes = operands.split(",")
    contracted, new = x_axes[2:], out[2:]
    if w_axes not in (contracted + new, new + contracted):
        raise ValueError(f"{spec} has the weight's axes neither out and in nor in and out.")
    sizes = dict(zip(w_axes, w.shape, strict=True))
    width = math.prod(sizes[axis] for axis in contracted)
    B, T = x_BxTxX.shape[:2]
    rows = x_BxTxX.reshape(B * T, width)
    if w.dtype == jnp.bfloat16 and B * T < BF16_ROWS:
        rows = jnp.pad(rows, ((0, BF16_ROWS - B * T), (0, 0)))
    if w_axes == contracted + new:
        y = product("RX,XY->RY", rows, w.reshape(width, -1))
    elif len(rows) > FEW_ROWS:
        y = product("RX,YX->RY", rows, w.reshape(-1, width))
    else:
        y = jax.lax.platform_dependent(rows, w.reshape(-1, width), cpu=_on_left, default=_on_right)
    return y[: B * T].reshape(B, T, *(sizes[axis] for axis in new))


def _on_right(rows: jax.Array, w_YxX: jax.Array) -> jax.Array:
    return product("RX,YX->RY", rows, w_YxX)


def _on_left(rows: jax.Array, w_YxX: jax.Array) -> jax.Array:
    """`_on_right` by a product with the weight on the left, then transposed.

    XLA for CPUs packs the right operand anew at every call, which takes longer than reading it.
    The barrier keeps it from turning the product round again.
    """
    return jax.lax.optimization_barrier(product("RX,YX->YR", rows, w_YxX)).T


def look_up(table_VxD: jax.Array, ids: jax.Array) -> jax.Array:
    """The rows of a table, float32 `[..., D]`. A 16-bit table is taken as bits, without a gradient.

    XLA for CPUs gathers no bfloat16: it would widen the whole table first. The barrier keeps it
    from taking the bits of the whole table before a loop, which is a copy too.
    """
    if table_VxD.dtype != jnp.bfloat16:
        return jnp.take(table_VxD, ids, axis=0).astype(jnp.float32)
    table_VxD, ids = jax.lax.optimization_barrier((table_VxD, ids))
    bits = jnp.take(jax.lax.bitcast_convert_type(table_VxD, jnp.uint16), ids, axis=0)
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16).astype(jnp.float32)


def fastest_dtype() -> str:
    """The name of it: bfloat16 on accelerators and on CPUs with instructions for it, else float32.

    Not measured: caches of one dtype are not those of another, and a busy machine might choose
    otherwise the next time.
    """
    cpuinfo = pathlib.Path("/proc/cpuinfo")  # of Linux; other systems have float32
    on_cpu = jax.default_backend() == "cpu"
    flags = cpuinfo.read_text() if on_cpu and cpuinfo.exists() else ""
    native = not on_cpu or re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags)
    return "bfloat16" if native else "float32"
