"""attend(): the only attention. One softmax over any number of separate caches."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models import rope
from models.precision import product

# Finite, so that a row that sees nothing has no NaN in its gradient.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
# A segment is read in blocks of keys if it gives at least so many: for rows that are one block, and
# for rows in blocks, which skip half of their own slots.
LEAST_BLOCKS = 4, 3
# Otherwise, if it has at least so many slots, rows in blocks read a quarter of them, a half, three
# quarters or all, up to the last that they see: each is a branch to compile.
EXTENTS, LEAST_EXTENT = 4, 1024


class Segment(NamedTuple):
    """One layer of one cache. A batch of 1 is shared by all rows, not copied for them."""

    k: jax.Array  # [B or 1, S, K, H]
    v: jax.Array
    positions: jax.Array  # int32 [B or 1, S]
    valid: jax.Array  # bool [B or 1, S]
    bias: jax.Array | None = None  # [B or 1, K, S]
    # rope.turns, [n, H/2] each: the slots are n equal runs, and queries are turned for each.
    turns: tuple[jax.Array, jax.Array] | None = None


class KeyBlocks(NamedTuple):
    """A segment whose slots are taken in blocks, but for those of which no row sees a slot."""

    segment: Segment  # heads first, without bias or turns; padded to whole blocks
    size: int  # slots of a block


class Extents(NamedTuple):
    """A segment of which no more quarters are read than rows see."""

    segment: Segment  # heads first, without bias or turns


class Attended(NamedTuple):
    """What rows took from one part of their context; `attend` merges it with the others."""

    out: jax.Array  # float32 [K, X, H]: by key/value head, X = B * G * T
    log_sum: jax.Array  # float32 [K, X]: log of the sum of exponentiated scores


class Kernel(NamedTuple):
    """A part of the context, shared by all rows, that a kernel of its own attends to."""

    # Queries [K, X, H], scaled, and their positions int32 [X] to Attended.
    attended: Callable[[jax.Array, jax.Array], Attended]


def attend(
    q_BxTxNxH: jax.Array,
    positions_BxT: jax.Array,
    segments: list[Segment | Kernel],
    block: int,
    key_block: int = 0,
) -> jax.Array:
    """Attention of rows over all segments, as over their concatenation but without the copy.

    A row at position t sees the slots that are valid and whose position is <= t. More than `block`
    rows are taken in blocks, so that memory is linear in S.

    Args:
      key_block: slots that `block` rows take at once, half as many rows twice as many; 0: all.
        What none of the rows sees is then skipped: blocks of slots; or, where their own, the
        last segment, are too few for blocks, the last quarters of these. Under vmap nothing would
        be skipped: set it to 0 there.

    Returns float32 `[B, T, N, H]`. A row that sees no slot gets a finite value without meaning.
    """
    B, T, N, H = q_BxTxNxH.shape
    q_KxBxGxTxH, segments = _heads_first(q_BxTxNxH, segments)
    if key_block:
        most = max(1, key_block * block // (B * min(T, block)))
        least = LEAST_BLOCKS[T > block]
        segments = [_in_key_blocks(s, most, least) for s in segments]
        if T > block:
            segments[-1] = _by_extent(segments[-1])
    if T <= block:
        out = _attend_rows(q_KxBxGxTxH, positions_BxT, segments)
    else:
        out = _attend_blocks(q_KxBxGxTxH, positions_BxT, segments, block)
    return jnp.transpose(out, (1, 3, 0, 2, 4)).reshape(B, T, N, H)


def weights(q_BxTxNxH: jax.Array, positions_BxT: jax.Array, segments: list[Segment]) -> jax.Array:
    """The attention weights of each row over all slots, the segments end to end.

    The mask is `attend`'s. Returns float32 `[B, T, N, S]`, S the slots of all segments: for a few
    rows only.
    """
    B, T, N, _ = q_BxTxNxH.shape
    q_KxBxGxTxH, segments = _heads_first(q_BxTxNxH, segments)
    scores = [_scores(q_KxBxGxTxH, positions_BxT, s) for s in segments]
    shares = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    return jnp.transpose(shares, (1, 3, 0, 2, 4)).reshape(B, T, N, -1)


def _heads_first(q_BxTxNxH, segments):
    # Key/value heads first: XLA for CPUs takes such products as they are and copies others.
    B, T, N, H = q_BxTxNxH.shape
    K = next(s for s in segments if isinstance(s, Segment)).k.shape[2]
    q_KxBxGxTxH = jnp.transpose(q_BxTxNxH.reshape(B, T, K, N // K, H), (2, 0, 3, 1, 4)) * H**-0.5
    return q_KxBxGxTxH, [
        s._replace(k=jnp.transpose(s.k, (2, 0, 1, 3)), v=jnp.transpose(s.v, (2, 0, 1, 3)))
        if isinstance(s, Segment)
        else s
        for s in segments
    ]


def _can_be_cut(segment: Segment | Kernel | KeyBlocks) -> bool:
    return isinstance(segment, Segment) and segment.turns is None and segment.bias is None


def _by_extent(segment: Segment | Kernel | KeyBlocks) -> Segment | Kernel | KeyBlocks | Extents:
    """The segment by its quarters, if it can be and is long enough."""
    long = _can_be_cut(segment) and segment.positions.shape[-1] >= LEAST_EXTENT
    return Extents(segment) if long else segment


def _in_key_blocks(
    segment: Segment | Kernel, most: int, least: int
) -> Segment | Kernel | KeyBlocks:
    """The segment in blocks of at most so many slots, if it can be and has at least so many."""
    if not _can_be_cut(segment):
        return segment
    k, v, positions, valid, *_ = segment
    slots = positions.shape[-1]
    count = -(-slots // most)
    if count < least:
        return segment
    # Twice as many that need no padding, which copies, are as good.
    count = next((n for n in range(count, 2 * count) if slots % n == 0), count)
    size = -(-slots // count)

    def pad(array, axis: int):
        extra = [(0, count * size - slots if i == axis else 0) for i in range(array.ndim)]
        return jnp.pad(array, extra)

    return KeyBlocks(Segment(pad(k, 2), pad(v, 2), pad(positions, 1), pad(valid, 1)), size)


def _attend_blocks(q_KxBxGxTxH, positions_BxT, segments, block: int):
    T = positions_BxT.shape[1]
    count = -(-T // block)
    size = -(-T // count)
    extra = count * size - T
    q = jnp.pad(q_KxBxGxTxH, [(0, 0)] * 3 + [(0, extra), (0, 0)])
    q = jnp.moveaxis(q.reshape(*q.shape[:3], count, size, q.shape[-1]), 3, 0)
    positions = jnp.pad(positions_BxT, [(0, 0), (0, extra)]).reshape(-1, count, size)
    # Checkpointed: the backward pass recomputes a block's scores instead of storing all of them.
    rows = jax.checkpoint(functools.partial(_attend_rows, segments=segments))

    def step(out, block):
        i, q, positions = block
        return jax.lax.dynamic_update_index_in_dim(out, rows(q, positions), i, 0), None

    # Every block of `out` is written over. It begins as the queries, not as zeros (what lax.map
    # does), because XLA for CPUs makes the zeros of all layers first and holds them to the end.
    blocks = jnp.arange(count), q, jnp.moveaxis(positions, 1, 0)
    out, _ = jax.lax.scan(step, q.astype(jnp.float32), blocks)
    out = jnp.moveaxis(out, 0, 3)
    return out.reshape(*out.shape[:3], count * size, out.shape[-1])[:, :, :, :T]


def _attend_rows(q_KxBxGxTxH, positions_BxT, segments):
    plain = [s for s in segments if isinstance(s, Segment)]
    run = {Kernel: _in_kernel, KeyBlocks: _attend_key_blocks, Extents: _attend_extents}
    parts = [run[type(s)](q_KxBxGxTxH, positions_BxT, s) for s in segments if type(s) in run]
    scores = [_scores(q_KxBxGxTxH, positions_BxT, s) for s in plain]
    tops = [s.max(axis=-1, keepdims=True) for s in scores] + [p.log_sum for p in parts]
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
    weights = [jnp.exp(s - top) for s in scores]
    shares = [jnp.exp(p.log_sum - top) for p in parts]
    total = sum(itertools.chain((w.sum(axis=-1, keepdims=True) for w in weights), shares))
    mixed = (_mix(w, s.v) for w, s in zip(weights, plain, strict=True))
    shared = (w * p.out for w, p in zip(shares, parts, strict=True))
    return sum(itertools.chain(mixed, shared)) / total


def _seen(positions_BxT, segment: Segment) -> jax.Array:
    """bool `[S]`: the slots that any of the rows sees."""
    return (segment.valid & (segment.positions <= positions_BxT.max())).any(axis=0)


def _attend_extents(q_KxBxGxTxH, positions_BxT, extents: Extents) -> Attended:
    """One segment's part, in the rows' axes as `_in_kernel` gives it."""
    segment = extents.segment
    slots = segment.positions.shape[-1]
    ends = [slots * i // EXTENTS for i in range(1, EXTENTS + 1)]

    def attend_to(end: int):
        k, v = segment.k[:, :, :end], segment.v[:, :, :end]
        cut = Segment(k, v, segment.positions[:, :end], segment.valid[:, :end])

        def part(q, positions):
            scores = _scores(q, positions, cut)
            top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
            weights = jnp.exp(scores - top)
            total = weights.sum(axis=-1, keepdims=True)
            return Attended(_mix(weights, cut.v) / total, top + jnp.log(total))

        return part

    seen_S = _seen(positions_BxT, segment)
    index = sum(seen_S[end:].any().astype(jnp.int32) for end in ends[:-1])
    return jax.lax.switch(index, list(map(attend_to, ends)), q_KxBxGxTxH, positions_BxT)


def _attend_key_blocks(q_KxBxGxTxH, positions_BxT, blocks: KeyBlocks) -> Attended:
    """One segment's part, in the rows' axes as `_in_kernel` gives it."""
    segment, size = blocks
    seen = _seen(positions_BxT, segment).reshape(-1, size).any(axis=1)

    def add(running, i):
        out, top, total = running
        cut = lambda a, axis: jax.lax.dynamic_slice_in_dim(a, i * size, size, axis)  # noqa: E731
        k, v, positions, valid, *_ = segment
        block = Segment(cut(k, 2), cut(v, 2), cut(positions, 1), cut(valid, 1))
        scores = _scores(q_KxBxGxTxH, positions_BxT, block)
        new_top = jax.lax.stop_gradient(jnp.maximum(top, scores.max(axis=-1, keepdims=True)))
        weights, kept = jnp.exp(scores - new_top), jnp.exp(top - new_top)
        total = total * kept + weights.sum(axis=-1, keepdims=True)
        return out * kept + _mix(weights, block.v), new_top, total

    def step(running, i):
        return jax.lax.cond(seen[i], add, lambda running, i: running, running, i), None

    none = jnp.zeros((*q_KxBxGxTxH.shape[:-1], 1), jnp.float32)
    start = jnp.zeros(q_KxBxGxTxH.shape, jnp.float32), none + MASKED, none
    (out, top, total), _ = jax.lax.scan(step, start, jnp.arange(len(seen)))
    total = jnp.maximum(total, 1e-30)  # where no block is seen
    return Attended(out / total, top + jnp.log(total))


def _in_kernel(q_KxBxGxTxH, positions_BxT, kernel: Kernel) -> Attended:
    """The kernel's part, in the rows' axes: `[K, B, G, T, H]` and `[K, B, G, T, 1]`."""
    K, B, G, T, H = shape = q_KxBxGxTxH.shape
    positions = jnp.broadcast_to(positions_BxT[:, None], (B, G, T)).reshape(-1)
    part = kernel.attended(q_KxBxGxTxH.reshape(K, -1, H), positions)
    return Attended(part.out.reshape(shape), part.log_sum.reshape(*shape[:-1], 1))


def _scores(q_KxBxGxTxH, positions_BxT, segment: Segment):
    K, B, G, T, H = q_KxBxGxTxH.shape
    S = segment.positions.shape[-1]
    if segment.turns is not None:
        scores = _turned_scores(q_KxBxGxTxH, segment)
    elif segment.k.shape[1] == 1:  # shared: one product for all rows
        scores = product("KXH,KSH->KXS", q_KxBxGxTxH.reshape(K, B * G * T, H), segment.k[:, 0])
    else:
        scores = product("KBXH,KBSH->KBXS", q_KxBxGxTxH.reshape(K, B, G * T, H), segment.k)
    scores = scores.reshape(K, B, G, T, S)
    if segment.bias is not None:
        scores += jnp.transpose(segment.bias, (1, 0, 2))[:, :, None, None, :]
    visible = segment.valid[:, None, :] & (
        segment.positions[:, None, :] <= positions_BxT[:, :, None]
    )
    return jnp.where(visible[:, None], scores, MASKED)


def _turned_scores(q_KxBxGxTxH, segment: Segment):
    """Scores `[K, X, S]` of X rows with the keys of a shared segment, run by run."""
    K, *_, H = q_KxBxGxTxH.shape
    cos, sin = (x[:, None] for x in segment.turns)
    q_KxNxXxH = rope.rotate(q_KxBxGxTxH.reshape(K, 1, -1, H), cos, sin)
    k_KxNxSxH = segment.k.reshape(K, len(cos), -1, H)
    scores = product("KNXH,KNSH->KNXS", q_KxNxXxH, k_KxNxSxH)
    return jnp.moveaxis(scores, 1, 2).reshape(K, q_KxNxXxH.shape[2], -1)


def _mix(weights_KxBxGxTxS, v_KxBxSxH):
    K, B, G, T, S = weights_KxBxGxTxS.shape
    if v_KxBxSxH.shape[1] == 1:
        out = product("KXS,KSH->KXH", weights_KxBxGxTxS.reshape(K, B * G * T, S), v_KxBxSxH[:, 0])
    else:
        out = product("KBXS,KBSH->KBXH", weights_KxBxGxTxS.reshape(K, B, G * T, S), v_KxBxSxH)
    return out.reshape(K, B, G, T, -1)
