"""The distiller: what training sees is what packets hold, and its choice has a gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvpacket_jax.compress import make
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets import distiller
from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.caches import distilled_caches, packet_caches
from kvpacket_jax.packets.compose import compose
from kvpacket_jax.packets.packet import build_packets, read_primer
from kvpacket_jax.packets.prefill import prefill, prefill_rows
from kvpacket_jax.train import loss
from models import kv_cache, low_rank
from tests.support.byte_model import ids

# Compiled whole: eagerly, each operation would be a program.
train_caches, distill, read_rows = (
    jax.jit(f, static_argnums=0) for f in (loss._caches, distilled_caches, prefill_rows)
)
EXACT = Buckets(soft_tokens=0, min_packet=8)
QUERY = np.array([[5, 8, 13, 21]], np.int32)


@pytest.fixture(scope="module")
def adapter(model):
    """Every part of it changes something."""
    key = jax.random.key(0)
    soft = adapter_lib.init(key, model.params["embedding"], 2, 1)
    filled = lambda factors: jax.tree.map(  # noqa: E731
        lambda x: 0.3 * jax.random.normal(key, x.shape), factors
    )
    made = distiller.init(model.config, key, 4)
    return soft._replace(
        primer=jnp.asarray(ids(5, 6), jnp.int32),
        writer=filled(low_rank.init(model.config, key, 2, ("q", "v"))),
        distiller=made._replace(kept=filled(made.kept)),
    )


def as_rows(documents):
    rows = np.zeros((len(documents), max(map(len, documents))), np.int32)
    for row, document in zip(rows, documents, strict=True):
        row[: len(document)] = document
    return rows, np.array(list(map(len, documents)), np.int32)


def test_packets_answer_as_what_is_trained(model, adapter):
    """Dropped slots that are only hidden, in training, are those that packets do not have."""
    keep = 0.25
    documents = [ids(0, 21), ids(1, 14)]
    packets = build_packets(model, adapter, documents, EXACT, compressor=make("kv_distill", keep))
    assert [p.slots for p in packets] == [int(24 * keep), int(17 * keep)]
    context, start = compose(model, packets, EXACT)
    found = prefill(model, (context,), QUERY.tolist(), start, buckets=EXACT).logits[0]

    primer = read_primer(model, adapter)
    parts = adapter._replace(primer=None)
    caches = train_caches(
        model.module, model.params, parts, *as_rows(documents), primer, np.float32(keep)
    )
    whole = kv_cache.init(model.config, 1, 64, jnp.float32, bias=True)
    for i, at in enumerate((0, 24)):
        part = kv_cache.move(model.config, kv_cache.row(caches, i), jnp.int32(at))
        whole = kv_cache.write(whole, part, jnp.int32(at))
    x, _ = read_rows(model.module, model.params, (whole,), QUERY, np.array([4]), 41)
    expected = model.module.bind({"params": model.params}).logits(x)[0, -1]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_keeping_all_without_changes_is_the_packet_itself(model, adapter):
    unchanged = distiller.init(model.config, jax.random.key(1), 4)
    parts = adapter._replace(primer=None, distiller=unchanged)
    given = model.module, model.params, parts, *as_rows([ids(0, 9), ids(1, 6)]), None
    made = distill(*given, np.array([12, 9]))
    expected = jax.jit(packet_caches, static_argnums=0)(*given)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), made.cache, expected)
    np.testing.assert_array_equal(made.kept, expected.valid)


def test_soft_tokens_stay_and_the_share_is_known_to_the_scorer(model, adapter):
    parts = adapter._replace(primer=None)
    given = model.module, model.params, parts, *as_rows([ids(0, 20), ids(1, 9)]), None
    few = distill(*given, np.array([4, 3]))
    assert few.kept.sum(1).tolist() == [4, 3]
    assert few.kept[0, [0, 1, 22]].all() and few.kept[1, [0, 1, 11]].all()
    many = distill(*given, np.array([12, 6]))
    assert np.abs(many.scores - few.scores)[0].max() > 1e-3


def test_scores_have_the_gradient_of_the_kept_keys_biases(model, adapter):
    parts, document = adapter._replace(primer=None), as_rows([ids(0, 21)])
    caches_of = lambda a, keep: loss._caches(  # noqa: E731
        model.module, model.params, a, *document, None, jnp.float32(keep)
    )

    def value(caches):
        x, _ = prefill_rows(model.module, model.params, (caches,), QUERY, np.array([4]), 24)
        return jnp.mean(jnp.square(x))

    def through(out):
        changed = parts.distiller._replace(out=out)
        return value(caches_of(parts._replace(distiller=changed), 0.5))

    def by_bias(out):
        """The same choice, with scores' differences as biases."""
        d = parts.distiller
        top = np.array([12])
        made = distilled_caches(model.module, model.params, parts, *document, None, top)
        now = distilled_caches(
            model.module,
            model.params,
            parts._replace(distiller=d._replace(out=out)),
            *document,
            None,
            top,
        ).scores
        cache = made.cache._replace(valid=made.cache.valid & made.kept)
        return value(kv_cache.add_bias(cache, now - made.scores))

    out = parts.distiller.out
    step = 1e-2 * jax.random.normal(jax.random.key(2), out.shape)
    by_bias = jax.jit(by_bias)
    expected = (by_bias(out + step) - by_bias(out - step)) / 2
    gradient = jax.jit(jax.grad(through))(out)
    assert abs(expected) > 1e-4
    np.testing.assert_allclose(jnp.vdot(gradient, step), expected, rtol=0.05)


def test_an_adapter_without_a_distiller_is_refused(model, adapter):
    with pytest.raises(ValueError, match="kv_distill needs an adapter with a distiller"):
        build_packets(model, None, [ids(0, 9)], compressor=make("kv_distill"))
    with pytest.raises(ValueError, match="always keeps soft tokens"):
        make("kv_distill/keep_soft_tokens=false")
    wide = adapter.distiller._replace(hidden=jnp.zeros((7, 16)))
    with pytest.raises(
        ValueError, match="have 7, 48 numbers|have 48, 7 numbers|have 7, 64 numbers"
    ):
        build_packets(model, adapter._replace(distiller=wide), [ids(0, 9)])


def test_what_is_saved_is_loaded(model, adapter, tmp_path):
    rounded = adapter_lib.rounded(adapter)
    adapter_lib.save_adapter(tmp_path / "a", rounded, {"model": model.fingerprint})
    loaded = adapter_lib.load_adapter(tmp_path / "a", model)
    jax.tree.map(np.testing.assert_array_equal, loaded, rounded)
    assert "a distiller of rank 4" in adapter_lib.describe(loaded)
    without = adapter_lib.fingerprint(rounded._replace(distiller=None))
    assert adapter_lib.fingerprint(loaded) == adapter_lib.fingerprint(rounded) != without
    arrays = adapter_lib.to_arrays(rounded)
    for name in ("distiller.out", "distiller.q.a"):
        rest = {k: v for k, v in arrays.items() if k != name}
        with pytest.raises(ValueError, match="lacks some|one factor only"):
            adapter_lib.from_arrays(rest, model.config.dim)


def test_an_absent_document_has_no_gradient(model, adapter):
    """Of training; without soft tokens it has no slot at all."""
    D = model.config.dim
    parts = adapter_lib.empty(D)._replace(distiller=adapter.distiller, writer=adapter.writer)
    rows, _ = as_rows([ids(0, 9), ids(1, 9)])
    lengths = np.array([9, 0], np.int32)

    def value(parts):
        caches = loss._caches(
            model.module, model.params, parts, rows, lengths, None, jnp.float32(0.5)
        )
        seen = caches.valid[..., None, None]
        return sum(jnp.sum(jnp.square(v) * seen) for v in caches.v)

    gradient = jax.jit(jax.grad(value))(parts)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))
    for factors in (*gradient.writer.values(), *gradient.distiller.kept.values()):
        assert all(jnp.abs(g).max() > 0 for g in factors)


def test_shared_layers_stay_together(tiny):
    config = tiny("tiny_qwen2", shared_layers="1:3").config
    assert distiller.first_layers(config) == range(3)
