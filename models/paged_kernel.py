"""Attention over pages as a Pallas kernel for TPUs: keys and values are read where they lie.

What paged.segment and attend do together, for the pages alone: each page's keys are turned to the
context's positions as they arrive, once for each block of ROWS rows, and scores live in fast memory
only. `attend` merges what comes out with the other segments by its log-sum-exp.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from models import rope, sharding
from models.attention import MASKED, Attended

# Of a block: so much of keys or values, and of queries, all heads together. Each is there twice,
# the next arriving while one is in use, and all must fit into the 16 MB that a program has.
BYTES = 2**20
SLOTS, ROWS = 512, 256  # and no more than these
LANES = 128  # statistics of a row fill as many, which is how TPUs hold a column
SUBLANES = 8
NOWHERE = jnp.iinfo(jnp.int32).max  # the position of a slot that is not valid


def attend_pages(config, q_KxXxH, positions_X, k, v, starts, positions, valid) -> Attended:
    """Attention of X rows over a pool's pages, all in their order.

    Split by heads over `config.mesh`. On a CPU the kernel is interpreted, slowly, as plain jax.

    Args:
      q_KxXxH: queries by key/value head, already scaled.
      positions_X: int32, of each row.
      k, v: the pool's of one layer, `[n, S, K, H]`.
      starts: int32 `[n]`, what is added to the positions of each page.
      positions, valid: int32 and bool `[n, S]`, the pool's.

    Returns:
      `[K, X, H]` and `[K, X]`. A row that sees no slot has finite values without meaning, and a
      log-sum-exp near MASKED.

    Raises ValueError on a GPU, which it is not written for.
    """
    seen_from = jnp.where(valid, positions + starts[:, None], NOWHERE)
    turns = rope.cos_sin(config.rope, config.head_dim, starts, config.max_positions)
    mesh = config.mesh
    platform = mesh.devices.flat[0].platform if mesh else jax.default_backend()
    if platform not in ("tpu", "cpu"):
        raise ValueError(f"paged_kernel=True is for TPUs, not for a {platform}: set it to False.")
    run = functools.partial(_attend, interpret=platform != "tpu")
    if mesh:
        of_heads, of_pool, whole = P(sharding.KV), P(None, None, sharding.KV), P()
        run = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(of_heads, whole, of_pool, of_pool, whole, whole, whole),
            out_specs=(of_heads, of_heads),
            check_vma=False,  # of what a kernel puts out jax cannot tell
        )
    return Attended(*run(q_KxXxH, positions_X, k, v, *turns, seen_from))


def _attend(q, positions, k, v, cos, sin, seen_from, interpret: bool):
    """Sums of values `[K, X, H]` and the log-sum-exp `[K, X]`, of the heads of one device."""
    (K, X, H), (n, S) = q.shape, seen_from.shape
    pages = _pages_at_once(n, max(1, min(SLOTS, BYTES // _slot_bytes(k)) // S))
    rows = min(ROWS, -(-X // 16) * 16, max(16, BYTES // (K * H * 4) // 16 * 16))
    # What fills the last block is never seen. Of pages there is seldom any.
    extra = -n % pages
    pages_more = lambda x, fill=0: jnp.pad(  # noqa: E731
        x, ((0, extra), *[(0, 0)] * (x.ndim - 1)), constant_values=fill
    )
    k, v, cos, sin = map(pages_more, (k, v, cos, sin)) if extra else (k, v, cos, sin)
    seen_from = pages_more(seen_from, NOWHERE).reshape(-1, 1, pages * S)
    q = jnp.pad(q, ((0, 0), (0, -X % rows), (0, 0)))
    positions = jnp.pad(positions, (0, -X % rows))[:, None]

    def block(*shape, of):
        """A block of an array: `of` says which of its axes goes with rows and which with pages."""
        return pl.BlockSpec(shape, lambda x, p: tuple({"x": x, "p": p}.get(c, 0) for c in of))

    blocks, slots = q.shape[1] // rows, (n + extra) * S
    done = q.shape[1] * slots * K
    out, log_sums = pl.pallas_call(
        functools.partial(_kernel, heads=K),
        grid=(blocks, (n + extra) // pages),
        in_specs=[
            block(K, rows, H, of="-x-"),
            block(rows, 1, of="x-"),
            block(pages, S, K, H, of="p---"),
            block(pages, S, K, H, of="p---"),
            block(pages, H // 2, of="p-"),
            block(pages, H // 2, of="p-"),
            block(1, 1, pages * S, of="p--"),
        ],
        out_specs=[block(K, rows, H, of="-x-"), block(K, rows, LANES, of="-x-")],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, jnp.float32),
            jax.ShapeDtypeStruct((*q.shape[:2], LANES), jnp.float32),
        ],
        scratch_shapes=[pltpu.VMEM((K, rows, LANES), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            # A score: two products, mask, maximum, difference and sum; a key's turn: three for each
            # number.
            flops=(4 * H + 4) * done + 3 * H * K * slots * blocks,
            transcendentals=done,
            bytes_accessed=(k.nbytes + v.nbytes) * blocks + 2 * q.nbytes,
        ),
        interpret=interpret,
        name="attend_pages",
    )(q, positions, k, v, cos, sin, seen_from)
    return out[:, :X], log_sums[:, :X, 0]


def fits(config, k: jax.Array) -> bool:
    """Whether the fewest pages of a pool `[n, S, K, H]` that TPUs take leave room for the rest."""
    devices = config.mesh.shape[sharding.KV] if config.mesh else 1
    return SUBLANES * k.shape[-3] * _slot_bytes(k) <= BYTES * devices


def _slot_bytes(k: jax.Array) -> int:
    return k.shape[-2] * k.shape[-1] * k.dtype.itemsize


def _pages_at_once(n: int, most: int) -> int:
    """Pages of a block: a divisor of n where there is one that TPUs take, so that none is added."""
    if n <= most:
        return n
    sizes = range(most // SUBLANES * SUBLANES, 0, -SUBLANES)
    return next((size for size in sizes if n % size == 0), max(SUBLANES, sizes.start))


def _kernel(q, row_positions, k, v, cos, sin, seen_from, out, log_sums, top, total, *, heads: int):
    """One block of rows over one block of pages; `out` holds sums of values until the last."""
    page = pl.program_id(1)

    @pl.when(page == 0)
    def _():
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)
        out[...] = jnp.zeros_like(out)

    pages, S, _, H = k.shape
    visible = seen_from[0] <= row_positions[...]
    turn_cos, turn_sin = cos[...][:, None], sin[...][:, None]
    low = k.dtype
    exact = jax.lax.Precision.HIGHEST if low == jnp.float32 else None
    dot = functools.partial(
        jax.lax.dot_general, precision=exact, preferred_element_type=jnp.float32
    )
    for h in range(heads):
        keys = rope.rotate(k[:, :, h, :], turn_cos, turn_sin).astype(low).reshape(pages * S, H)
        scores = dot(q[h].astype(low), keys, (((1,), (1,)), ((), ())))
        scores = jnp.where(visible, scores, MASKED)
        old_top = top[h]
        new_top = jnp.maximum(old_top, scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - new_top[:, :1])
        kept = jnp.exp(old_top - new_top)
        top[h] = new_top
        total[h] = total[h] * kept + weights.sum(axis=-1, keepdims=True)
        values = v[:, :, h, :].reshape(pages * S, H)
        new = dot(weights.astype(low), values, (((1,), (0,)), ((), ())))
        out[h] = out[h] * kept[:, :1] + new

    @pl.when(page == pl.num_programs(1) - 1)
    def _():
        out[...] = out[...] / total[:, :, :1]
        log_sums[...] = top[...] + jnp.log(total[...])
