"""The decoder of all three families: linen MLP, Block and Transformer; run_layers walks the layers.

Shapes: B batch, T rows, S slots, L layers, N query heads, K key/value heads, H head dim, D model
dim, M MLP dim, V vocabulary. The residual stream is float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import kv_cache, paged, rope
from models.attention import Segment, attend
from models.config import ModelConfig
from models.kv_cache import KVCache
from models.paged import Paged
from models.precision import look_up, project

# Weights are [out..., in...], as checkpoints have them: XLA for CPUs reads bfloat16 up to twice as
# fast as the other way round where rows are few, as in decoding, and a little faster where not.
_kernel = nn.initializers.lecun_normal(in_axis=1, out_axis=0)
_head_kernel = nn.initializers.lecun_normal(in_axis=2, out_axis=(0, 1))
_out_kernel = nn.initializers.lecun_normal(in_axis=(1, 2), out_axis=0)
_embedding = nn.initializers.normal(0.02)
_ones, _zeros = nn.initializers.ones, nn.initializers.zeros


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm over the last axis, float32."""
    x = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return x * inverse * scale.astype(jnp.float32)


class MLP(nn.Module):
    """SwiGLU."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        D, M = self.config.dim, self.config.mlp_dim
        gate = project("BTD,MD->BTM", x_BxTxD, self.param("gate", _kernel, (M, D)))
        up = project("BTD,MD->BTM", x_BxTxD, self.param("up", _kernel, (M, D)))
        return project("BTM,DM->BTD", nn.silu(gate) * up, self.param("down", _kernel, (D, M)))


class Block(nn.Module):
    """One layer. `qkv` and `finish` are separate: methods choose rows by a layer's queries."""

    config: ModelConfig

    def setup(self):
        c = self.config
        D, N, K, H = c.dim, c.num_heads, c.num_kv_heads, c.head_dim
        self.attention_norm = self.param("attention_norm", _ones, (D,))
        self.q = self.param("q", _head_kernel, (N, H, D))
        self.k = self.param("k", _head_kernel, (K, H, D))
        self.v = self.param("v", _head_kernel, (K, H, D))
        self.o = self.param("o", _out_kernel, (D, N, H))
        if c.qkv_bias:
            self.q_bias = self.param("q_bias", _zeros, (N, H))
            self.k_bias = self.param("k_bias", _zeros, (K, H))
            self.v_bias = self.param("v_bias", _zeros, (K, H))
        if c.qk_norm:
            self.q_norm = self.param("q_norm", _ones, (H,))
            self.k_norm = self.param("k_norm", _ones, (H,))
        self.mlp_norm = self.param("mlp_norm", _ones, (D,))
        self.mlp = MLP(c)

    def qkv(self, x_BxTxD: jax.Array, positions_BxT: jax.Array):
        """Rotated queries `[B, T, N, H]`, rotated keys and values `[B, T, K, H]`, float32."""
        c = self.config
        h = rms_norm(x_BxTxD, self.attention_norm, c.norm_eps)
        q, k, v = (project("BTD,NHD->BTNH", h, w) for w in (self.q, self.k, self.v))
        if c.qkv_bias:
            q, k, v = q + self.q_bias, k + self.k_bias, v + self.v_bias
        if c.qk_norm:
            q, k = rms_norm(q, self.q_norm, c.norm_eps), rms_norm(k, self.k_norm, c.norm_eps)
        q, k = (rope.rotate_heads(c, heads, positions_BxT) for heads in (q, k))
        return q, k, v

    def values(self, x_BxTxD: jax.Array) -> jax.Array:
        """`qkv`'s values alone."""
        h = rms_norm(x_BxTxD, self.attention_norm, self.config.norm_eps)
        v = project("BTD,KHD->BTKH", h, self.v)
        return v + self.v_bias if self.config.qkv_bias else v

    def finish(self, x_BxTxD: jax.Array, attended_BxTxNxH: jax.Array) -> jax.Array:
        """The rest of the layer, after its attention: x and hidden states float32 `[B, T, D]`."""
        x = x_BxTxD + project("BTNH,DNH->BTD", attended_BxTxNxH, self.o)
        return x + self.mlp(rms_norm(x, self.mlp_norm, self.config.norm_eps))

    def __call__(self, x, positions, segments, tail, slots, share=None, source=None):
        """One layer's pass: writes the rows' keys and values into `tail`, attends, finishes.

        `segments` are the layer's read-only context, `tail` the Segment the rows are written to at
        `slots`, with `share` as run_layers has it. `source`: queries and segments of the layer
        whose attention weights this one takes for its own values; None: it has its own weights.

        Returns (x, (k, v), (q, segments)): the tail's new k and v, and a `source` for the next.
        """

        def written(old, new):
            if share is not None:
                new = kv_cache.mix(old, new, slots, share)
            return kv_cache.write_slots(old, new, slots, kv_cache.SLOTS)

        if source is None:
            q, k, v = self.qkv(x, positions)
            own = tail._replace(k=written(tail.k, k), v=written(tail.v, v))
            segments = [*segments, own]
        else:
            q, own = source[0], tail._replace(v=written(tail.v, self.values(x)))
            seen = zip(source[1], [*segments, own], strict=True)
            segments = [keys._replace(v=values.v) for keys, values in seen]
        blocks = self.config.query_block, self.config.key_block
        attended = attend(q, positions, segments, *blocks)
        return self.finish(x, attended), (own.k, own.v), (q, segments)


class Transformer(nn.Module):
    """Embedding, layers and output. Parameters: embedding, final_norm, output (untied), layers.

    `layers` is a tuple of L Block parameter trees, or one with arrays stacked along a first axis L
    (`config.scan_layers`).
    """

    config: ModelConfig

    def setup(self):
        c = self.config
        self.embedding = self.param("embedding", _embedding, (c.vocab_size, c.dim))
        self.final_norm = self.param("final_norm", _ones, (c.dim,))
        if not c.tie_embeddings:
            self.output = self.param("output", _embedding, (c.vocab_size, c.dim))

    def embed(self, ids_BxT: jax.Array) -> jax.Array:
        """Token ids int32 `[B, T]` to embeddings float32 `[B, T, D]`."""
        return look_up(self.embedding, ids_BxT)

    def logits(self, x_BxTxD: jax.Array) -> jax.Array:
        """Hidden states of run_layers to next-token logits float32 `[B, T, V]`."""
        h = rms_norm(x_BxTxD, self.final_norm, self.config.norm_eps)
        output = self.embedding if self.config.tie_embeddings else self.output
        return project("BTD,VD->BTV", h, output)

    def qkv(self, x_BxTxD: jax.Array, positions_BxT: jax.Array, layer: int):
        """Queries, keys and values of rows at one layer, and nothing else of it: `Block.qkv`."""
        weights = self.get_variable("params", "layers")
        scanned = self.config.scan_layers
        weights = jax.tree.map(lambda a: a[layer], weights) if scanned else weights[layer]
        return _bind_block(self.config, weights).qkv(x_BxTxD, positions_BxT)

    def run_layers(
        self,
        x_BxTxD: jax.Array,
        positions_BxT: jax.Array,
        valid_BxT: jax.Array,
        context: tuple[KVCache | Paged, ...],
        tail: KVCache,
        slots: jax.Array,
        layers: range | None = None,
        share: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Rows through the layers: the only place that walks them. For jitted functions to call.

        Args:
          x_BxTxD: float32; embeddings, or hidden states of the layer before `layers`.
          positions_BxT: int32; the rows' positions.
          valid_BxT: bool; padding rows are computed and never seen.
          context: KVCaches and Paged ones that are only read; one with batch 1, as Paged is, is
            shared by all rows.
          tail: the cache the rows' keys and values are written to.
          slots: int32; the first slot in `tail`, or one for each row `[T]` (`write_slots`).
          layers: which, all if None.
          share: float32 `[T]`; the weight of a row's new keys and values, where they are written
            over old ones; the old ones have the rest. None: 1 for all.

        Returns:
          Hidden states float32 `[B, T, D]` before the final norm, and the tail.

        Raises:
          ValueError: a tail with a bias, layers that do not follow one another, or shared layers
            without the one whose attention weights they take.
        """
        c = self.config
        layers = range(c.num_layers) if layers is None else layers
        if tail.bias is not None:
            raise ValueError("Rows have no bias: they cannot be written to a cache that has one.")
        _check_layers(c, layers)
        tail = kv_cache.mark(tail, positions_BxT, valid_BxT, slots)
        params = self.get_variable("params", "layers")

        def body(x, layer, source=None):
            weights, (tail_k, tail_v), contexts = layer
            rows = x_BxTxD.shape[0] * x_BxTxD.shape[1] * c.num_heads
            segments = [
                paged.segment_or_kernel(c, cache, k, v, bias, rows)
                if isinstance(cache, Paged)
                else Segment(k, v, cache.positions, cache.valid, bias)
                for cache, (k, v, bias) in zip(context, contexts, strict=True)
            ]
            own = Segment(tail_k, tail_v, tail.positions, tail.valid)
            block = _bind_block(c, weights)
            return block(x, positions_BxT, segments, own, slots, share, source)

        remat = jax.checkpoint if c.remat else lambda fn: fn
        arrays = (params, (tail.k, tail.v), tuple(s.layers for s in context))
        if c.scan_layers:
            x, (k, v) = _scan(remat(lambda *layer: body(*layer)[:2]), x_BxTxD, arrays, layers)
        else:
            x, (k, v) = _loop(remat(body), x_BxTxD, arrays, layers, c.shares)
        return x, tail._replace(k=k, v=v)


def _check_layers(config: ModelConfig, layers: range) -> None:
    if layers.step != 1:
        raise ValueError(f"Layers run one after the other, without gaps; found {layers}.")
    if config.shares(layers.start):
        shared = config.shared_layers
        raise ValueError(
            f"Layers from {layers.start} on cannot run apart from layer {shared.start - 1}, whose "
            f"attention weights they share (shared_layers={shared.start}:{shared.stop})."
        )


def _bind_block(config: ModelConfig, weights) -> Block:
    # Not a submodule: all layers may be one stacked array, of which linen knows nothing.
    return Block(config, parent=None).bind({"params": weights})


def _loop(body, x, arrays, layers: range, shares):
    params, (tail_k, tail_v), contexts = arrays
    tail_k, tail_v, source = list(tail_k), list(tail_v), None
    # Jitted, so that layers alike are traced and lowered once for all: with 24 of them that is a
    # fifth of the work before a program is compiled, or found in the compilation cache.
    leads = jax.jit(body)  # its attention weights are the next layer's too
    stands_alone = jax.jit(lambda *given: (*body(*given)[:2], None))
    for i in layers:
        context = tuple((k[i], v[i], None if bias is None else bias[i]) for k, v, bias in contexts)
        run = leads if shares(i + 1) else stands_alone
        with jax.named_scope(f"layer_{i}"):
            layer = params[i], (tail_k[i], tail_v[i]), context
            x, (tail_k[i], tail_v[i]), source = run(x, layer, source)
    return x, (tuple(tail_k), tuple(tail_v))


def _scan(body, x, arrays, layers: range):
    all_layers = layers == range(jax.tree.leaves(arrays[1])[0].shape[0])
    chosen = arrays if all_layers else jax.tree.map(lambda a: a[layers.start : layers.stop], arrays)
    x, rows = jax.lax.scan(body, x, chosen)
    if all_layers:
        return x, rows
    put = lambda old, new: old.at[layers.start : layers.stop].set(new)  # noqa: E731
    return x, jax.tree.map(put, arrays[1], rows)


def init_params(config: ModelConfig, key: jax.Array, dtype=jnp.float32):
    """Random parameters, for tests and for measuring shapes without their weights.

    Under `jax.eval_shape` it gives the tree of shapes that weights are checked against.
    """
    key, layers_key = jax.random.split(key)
    params = Transformer(config).init(key, jnp.zeros((1, 1), jnp.int32), method="embed")["params"]
    block = Block(config, parent=None)
    x, zero = jnp.zeros((1, 1, config.dim)), jnp.zeros((1, 1), jnp.int32)
    empty = jnp.zeros((1, 1, config.num_kv_heads, config.head_dim))
    tail = Segment(empty, empty, zero, zero.astype(bool))
    one = lambda k: block.init(k, x, zero, [], tail, 0)["params"]  # noqa: E731
    keys = jax.random.split(layers_key, config.num_layers)
    params["layers"] = jax.vmap(one)(keys) if config.scan_layers else tuple(map(one, keys))
    return jax.tree.map(lambda p: p.astype(dtype), params)
