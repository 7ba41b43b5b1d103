"""Composition, prefill and decoding: what must not change whatever the packets, sizes and order."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import CHUNK, Buckets
from kvpacket_jax.packets.caches import packet_caches
from kvpacket_jax.packets.compose import compose, context_slots, slots_needed
from kvpacket_jax.packets.generate import generate, stream
from kvpacket_jax.packets.packet import build_packets
from kvpacket_jax.packets.prefill import prefill
from models import kv_cache, rope

SMALL = Buckets(queries=(4, 8), min_packet=8, soft_tokens=0, contexts=(16,), new_tokens=16)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("tiny_llama31")


@pytest.fixture(scope="module")
def adapter(model):
    return adapter_lib.init(jax.random.key(0), model.params["embedding"], 3, 2)


def ids(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 384, length).tolist()


def visible(cache):
    """Keys and values `[L, S, K, H]` of the valid slots, and their positions."""
    seen = np.asarray(cache.valid[0])
    k, v = (np.stack([np.asarray(a[0]) for a in part])[:, seen] for part in (cache.k, cache.v))
    return k, v, np.asarray(cache.positions[0])[seen]


@functools.partial(jax.jit, static_argnames="module")
def plain(module, params, x):
    """One pass over embeddings `[1, T, D]` at positions 0, 1, …: logits `[T, V]` and the cache."""
    apply = functools.partial(module.apply, {"params": params})
    tail = kv_cache.init(module.config, 1, x.shape[1], jnp.float32)
    places = jnp.arange(x.shape[1])[None]
    x, tail = apply(x, places, places >= 0, (), tail, 0, method="run_layers")
    return apply(x, method="logits")[0], tail


def embed(model, tokens):
    return model.module.apply({"params": model.params}, jnp.array([tokens]), method="embed")


def first_logits(model, packets, query, buckets=SMALL):
    context, start = compose(model, packets, buckets)
    return np.asarray(prefill(model, (context,), [query], start, buckets=buckets).logits[0])


@pytest.mark.parametrize("wrapped", [True, False])
def test_one_packet_at_position_0_is_a_plain_prefill(model, adapter, wrapped):
    document, query = ids(0, 13), ids(1, 4)
    adapter = adapter if wrapped else None
    parts = [embed(model, document), embed(model, query)]
    if wrapped:
        parts = [adapter.header[None], parts[0], adapter.trailer[None], parts[1]]
    x = jnp.concatenate(parts, axis=1)
    logits, cache = plain(model.module, model.params, x)
    packets = build_packets(model, adapter, [document], SMALL)
    context, start = compose(model, packets, SMALL)
    assert start == x.shape[1] - len(query)
    for found, expected in zip(visible(context)[:2], visible(cache)[:2], strict=True):
        np.testing.assert_allclose(found, expected[:, :start], atol=2e-5)
    np.testing.assert_array_equal(visible(context)[2], range(start))
    np.testing.assert_allclose(first_logits(model, packets, query), logits[-1], atol=1e-3)


def test_another_order_moves_the_same_keys(model, adapter):
    packets = build_packets(model, adapter, [ids(i, n) for i, n in enumerate((5, 17, 9))], SMALL)
    one, length = compose(model, packets, SMALL)
    other, same_length = compose(model, [packets[i] for i in (2, 0, 1)], SMALL)
    assert length == same_length == sum(p.length for p in packets)
    (k, v, places), (k2, v2, places2) = visible(one), visible(other)
    np.testing.assert_array_equal(places, range(length))
    np.testing.assert_array_equal(places2, range(length))
    starts = dict(zip((0, 1, 2), np.cumsum([0, *(p.length for p in packets)]), strict=False))
    starts2 = dict(
        zip((2, 0, 1), np.cumsum([0, packets[2].length, packets[0].length]), strict=True)
    )
    freq = rope.frequencies(model.config.rope, model.config.head_dim)
    for i, packet in enumerate(packets):
        a, b = (slice(s[i], s[i] + packet.length) for s in (starts, starts2))
        np.testing.assert_array_equal(v[:, a], v2[:, b])
        # Moved by the difference of the places: a rotation, here in float64.
        turn = np.exp(1j * freq * (starts2[i] - starts[i]))
        half = k.shape[-1] // 2
        pairs = (k[:, a, :, :half] + 1j * k[:, a, :, half:]) * turn
        moved = np.concatenate([pairs.real, pairs.imag], axis=-1)
        np.testing.assert_allclose(k2[:, b], moved, atol=5e-6)


def test_packets_know_nothing_of_their_neighbours(model, adapter):
    documents = [ids(i, n) for i, n in enumerate((5, 30, 9))]
    together = build_packets(model, adapter, documents, SMALL)
    for document, packet in zip(documents, together, strict=True):
        (alone,) = build_packets(model, adapter, [document], SMALL)
        assert (alone.length, alone.manifest) == (packet.length, packet.manifest)
        for a, b in zip(visible(alone.cache), visible(packet.cache), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_padding_and_bucket_sizes_change_nothing(model, adapter):
    documents, query = [ids(i, n) for i, n in enumerate((5, 30, 9))], ids(9, 5)
    results = []
    for buckets in (
        SMALL,
        Buckets(queries=(5,), min_packet=1, soft_tokens=0, contexts=(1,), new_tokens=0),
        Buckets(queries=(64,), min_packet=128, contexts=(512,), new_tokens=256),
    ):
        packets = build_packets(model, adapter, documents, buckets)
        context, start = compose(model, packets, buckets)
        ready = prefill(model, (context,), [query], start, 20, buckets)
        logits = np.asarray(ready.logits[0])
        results.append((logits, generate(model, (context,), ready, 20, stop_ids=())[0]))
    for logits, answer in results[1:]:
        np.testing.assert_allclose(logits, results[0][0], atol=2e-4)
        assert answer == results[0][1]


def test_fewer_slots_than_packets_and_padding_need_are_refused(model, adapter):
    packets = build_packets(model, adapter, [ids(0, 5), ids(1, 9)], SMALL)
    needed = slots_needed(packets)
    assert needed > sum(p.length for p in packets)
    compose(model, packets, slots=needed)
    with pytest.raises(ValueError, match=f"{needed - 1} slots do not hold .* they need {needed}"):
        compose(model, packets, slots=needed - 1)


def test_what_stands_in_the_padding_is_never_seen(model, adapter):
    packets = build_packets(model, adapter, [ids(0, 5), ids(1, 9)], SMALL)
    query = ids(2, 4)
    expected = first_logits(model, packets, query)

    def spoil(packet):
        padding = ~packet.cache.valid[0][:, None, None]
        k, v = jax.tree.map(lambda a: jnp.where(padding, 77.0, a), (packet.cache.k, packet.cache.v))
        return dataclasses.replace(packet, cache=packet.cache._replace(k=k, v=v))

    assert not all(p.cache.valid.all() for p in packets)
    np.testing.assert_array_equal(first_logits(model, [spoil(p) for p in packets], query), expected)


def test_a_shared_context_is_the_same_as_a_copy_for_each_row(model, adapter):
    packets = build_packets(model, adapter, [ids(0, 5), ids(1, 9)], SMALL)
    queries = [ids(i, n) for i, n in ((3, 4), (4, 2), (5, 7))]
    context, start = compose(model, packets, SMALL)
    copies = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), context)  # three rows, padded to four
    answers = {}
    for name, cache in (("shared", context), ("copied", copies)):
        ready = prefill(model, (cache,), queries, start, 20, SMALL)
        logits = np.asarray(ready.logits[:3])
        answers[name] = logits, generate(model, (cache,), ready, 20, stop_ids=())
    np.testing.assert_allclose(answers["shared"][0], answers["copied"][0], atol=2e-4)
    assert answers["shared"][1] == answers["copied"][1]
    for query, answer in zip(queries, answers["shared"][1], strict=True):
        ready = prefill(model, (context,), [query], start, 20, SMALL)
        assert generate(model, (context,), ready, 20, stop_ids=())[0] == answer


@pytest.mark.parametrize(
    ("lengths", "slots"),
    [
        ((8, 8, 16), 32),  # every slot is a document's
        ((7, 9), 32),  # 16 positions, but the second packet's padding ends at slot 23
        ((20, 3), 32),  # padding of the first beyond the second's
        ((31, 1), 64),
    ],
)
def test_a_context_is_never_clamped(model, lengths, slots):
    # dynamic_update_slice moves a start that does not fit and writes over the packet before.
    packets = build_packets(model, None, [ids(i, n) for i, n in enumerate(lengths)], SMALL)
    assert context_slots(packets, SMALL) == slots
    context, length = compose(model, packets, SMALL)
    k, v, places = visible(context)
    np.testing.assert_array_equal(places, range(sum(lengths)))
    assert length == sum(lengths)
    offset = 0
    for packet in packets:
        span = slice(offset, offset + packet.length)
        own_k, own_v, _ = visible(packet.cache)
        np.testing.assert_array_equal(v[:, span], own_v)
        moved = rope.move(model.config, jnp.asarray(own_k), jnp.int32(offset))
        np.testing.assert_allclose(k[:, span], moved, atol=2e-6)
        offset += packet.length


def test_a_tail_filled_to_its_last_slot_is_not_clamped(model):
    document, query, number = ids(0, 8), ids(1, 4), CHUNK + 1
    buckets = Buckets(queries=(4,), min_packet=8, soft_tokens=0, contexts=(16,), new_tokens=CHUNK)
    context, start = compose(model, build_packets(model, None, [document], buckets), buckets)
    ready = prefill(model, (context,), [query], start, CHUNK, buckets)
    assert ready.slot + CHUNK == ready.tail.num_slots
    answer = generate(model, (context,), ready, number, stop_ids=())[0]
    assert len(answer) == number
    # Read again in one pass, every token is the likeliest behind those before it.
    whole = [*document, *query, *answer]
    logits, _ = plain(model.module, model.params, embed(model, whole))
    assert np.argmax(logits[-number - 1 : -1], axis=-1).tolist() == answer
    # And has the probability that was given with it.
    ready = prefill(model, (context,), [query], start, CHUNK, buckets)
    given = [p for f in stream(model, (context,), ready, number, ()) for p in f.probabilities[0]]
    known = np.asarray(jax.nn.softmax(logits[-number - 1 : -1], axis=-1)).max(axis=-1)
    np.testing.assert_allclose(given, known, rtol=1e-4)

    ready = prefill(model, (context,), [query], start, CHUNK, buckets)
    with pytest.raises(ValueError, match="18 new tokens need 36 slots, .* tail has 20"):
        generate(model, (context,), ready, number + 1, stop_ids=())


def test_an_answer_ends_with_its_stop_token(model):
    packets = build_packets(model, None, [ids(0, 8)], SMALL)
    context, start = compose(model, packets, SMALL)
    queries = [ids(1, 4), ids(2, 4)]

    def answers(stop_ids):
        ready = prefill(model, (context,), queries, start, 40, SMALL)
        return generate(model, (context,), ready, 40, stop_ids=stop_ids)

    free = answers(())
    assert [len(a) for a in free] == [40, 40]
    stop = free[0][20]
    cut = [a[: a.index(stop) + 1] if stop in a else a for a in free]
    assert answers((stop,)) == cut and len(cut[0]) <= 21


def test_gradients_reach_the_adapter_through_packets(model, adapter):
    tokens = jnp.array([ids(0, 6)])

    @jax.jit
    def loss(adapter):
        cache = packet_caches(model.module, model.params, adapter, tokens, jnp.array([4]))
        seen = cache.valid[0][:, None, None]
        return sum(jnp.sum(jnp.where(seen, jnp.sin(v[0]), 0)) for v in cache.v)

    grads = jax.jit(jax.grad(loss))(adapter)
    parts = jax.tree.leaves(grads)
    assert len(parts) == 2 and all(bool((jnp.abs(g).sum(-1) > 0).all()) for g in parts)
    step = 1e-2 / float(jnp.sqrt(sum(jnp.sum(g**2) for g in parts)))
    up, down = (jax.tree.map(lambda a, g, s=s: a + s * step * g, adapter, grads) for s in (1, -1))
    slope = float(loss(up) - loss(down)) / (2 * step)
    assert slope == pytest.approx(float(sum(jnp.sum(g**2) for g in parts)), rel=2e-2)


def packet_of(m, **manifest):
    (packet,) = build_packets(m, None, [ids(0, 5)], SMALL)
    return dataclasses.replace(packet, manifest=dataclasses.replace(packet.manifest, **manifest))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda m: compose(m, [packet_of(m, model="0" * 64)]), "Packet 0 .* another model: 0000"),
        (
            lambda m: compose(m, [packet_of(m), packet_of(m, dtype="bfloat16")]),
            "Packet 1 .* another dtype: bfloat16, not float32",
        ),
        (lambda m: build_packets(m, None, [[1], []]), "Document 1 is empty"),
        (lambda m: build_packets(m, None, [[1, 512]]), "token id 512; .* ends at 511"),
        (lambda m: build_packets(m, None, [[-1, 5]]), "token id -1"),
        (
            lambda m: build_packets(m, Adapter(jnp.zeros((2, 65)), jnp.zeros((1, 65))), [[1]]),
            "tokens have 65 numbers, embeddings of .* have 64",
        ),
        (lambda m: prefill(m, (), [[1], []], 0), "Query 1 is empty"),
        (lambda m: prefill(m, (), [[9999]], 0), "Query 0 has token id 9999"),
    ],
)
def test_mistakes_are_named(model, make, error):
    with pytest.raises(ValueError, match=error):
        make(model)


def test_sequences_longer_than_the_models_context_are_refused(model):
    limit = 20
    config = dataclasses.replace(model.config, max_positions=limit)
    short = dataclasses.replace(model, config=config)
    packets = build_packets(model, None, [ids(0, 11), ids(1, 9)], SMALL)
    compose(model, packets, SMALL)
    with pytest.raises(ValueError, match="spans 21 positions; the context of .* is 20"):
        build_packets(short, None, [ids(0, limit + 1)], SMALL)
    with pytest.raises(ValueError, match="spans 31 positions"):
        compose(short, [*packets, packets[0]], SMALL)
    with pytest.raises(ValueError, match="spans 21 positions"):
        prefill(short, (), [ids(0, 4)], 15, new_tokens=2)
