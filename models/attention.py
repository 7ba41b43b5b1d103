"""attend(): the only attention. One softmax over any number of separate caches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.precision import product

# Finite, so that a row that sees nothing has no NaN in its gradient.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


class Segment(NamedTuple):
    """One layer of one cache. A batch of 1 is shared by all rows, not copied for them."""

    k: jax.Array  # [B or 1, S, K, H]
    v: jax.Array
    positions: jax.Array  # int32 [B or 1, S]
    valid: jax.Array  # bool [B or 1, S]
    bias: jax.Array | None = None  # [B or 1, K, S]


def attend(
    q_BxTxNxH: jax.Array, positions_BxT: jax.Array, segments: list[Segment], block: int
) -> jax.Array:
    """Attention of rows over all segments, as over their concatenation but without the copy.

    A row at position t sees the slots that are valid and whose position is <= t. More than `block`
    rows are taken in blocks, so that memory is linear in S.

    Returns float32 `[B, T, N, H]`. A row that sees no slot gets a finite value without meaning.
    """
    T = q_BxTxNxH.shape[1]
    if T <= block:
        return _attend_rows(q_BxTxNxH, positions_BxT, segments)
    count = -(-T // block)
    size = -(-T // count)

    def blocks(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, 0), (0, count * size - T)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)

    # Checkpointed: the backward pass computes a block's scores again instead of keeping them all.
    body = jax.checkpoint(lambda qp: _attend_rows(*qp, segments))
    out = jax.lax.map(body, (blocks(q_BxTxNxH), blocks(positions_BxT)))
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(out.shape[0], count * size, *out.shape[3:])[:, :T]


def _attend_rows(q_BxTxNxH, positions_BxT, segments):
    B, T, N, H = q_BxTxNxH.shape
    K = segments[0].k.shape[2]
    q = q_BxTxNxH.reshape(B, T, K, N // K, H) * H**-0.5
    scores = [_scores(q, positions_BxT, s) for s in segments]
    top = jax.lax.stop_gradient(
        jnp.max(jnp.stack([s.max(axis=-1) for s in scores]), axis=0)[..., None]
    )
    weights = [jnp.exp(s - top) for s in scores]
    total = sum(w.sum(axis=-1) for w in weights)  # [B, K, G, T]
    mixed = sum(_mix(w, s) for w, s in zip(weights, segments, strict=True))
    out = mixed / jnp.transpose(total, (0, 3, 1, 2))[..., None]
    return out.reshape(B, T, N, H)


def _scores(q_BxTxKxGxH, positions_BxT, segment: Segment):
    if segment.k.shape[0] == 1:
        scores = product("BTKGH,SKH->BKGTS", q_BxTxKxGxH, segment.k[0])
    else:
        scores = product("BTKGH,BSKH->BKGTS", q_BxTxKxGxH, segment.k)
    if segment.bias is not None:
        scores += segment.bias[:, :, None, None, :]
    visible = segment.valid[:, None, :] & (
        segment.positions[:, None, :] <= positions_BxT[:, :, None]
    )
    return jnp.where(visible[:, None, None], scores, MASKED)


def _mix(weights_BxKxGxTxS, segment: Segment):
    if segment.v.shape[0] == 1:
        return product("BKGTS,SKH->BTKGH", weights_BxKxGxTxS, segment.v[0])
    return product("BKGTS,BSKH->BTKGH", weights_BxKxGxTxS, segment.v)
