"""Compressors without published numbers against their definitions, in float64; and what all do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from kvpacket_jax.compress import COMPRESSORS, make, shortened
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets import distiller
from kvpacket_jax.packets.packet import build_packets, check_kept
from models import kv_cache, rope
from tests.support.byte_model import ids


@pytest.fixture(scope="module")
def adapter(model):
    soft = adapter_lib.init(jax.random.key(0), model.params["embedding"], 3, 2)
    return soft._replace(primer=jnp.asarray(ids(5, 6), jnp.int32))


@pytest.fixture(scope="module")
def small(byte_model):
    return models.load(str(byte_model), "float32")


def read(model, x):
    """Of each layer queries, keys and values `[T, heads, H]` of one sequence, float64."""
    layers = _read(model.module, model.params, x)
    return [[np.asarray(a[0], np.float64) for a in layer] for layer in layers]


@functools.partial(jax.jit, static_argnames="module")
def _read(module, params, x):
    bound = module.bind({"params": params})
    tail = kv_cache.init(module.config, 1, len(x), jnp.float32)
    places, x, layers = jnp.arange(len(x))[None], x[None], []
    for i in range(module.config.num_layers):
        layers.append(bound.qkv(x, places, i))
        x, tail = bound.run_layers(x, places, places >= 0, (), tail, 0, range(i, i + 1))
    return layers


def embed(model, tokens):
    return model.module.apply({"params": model.params}, jnp.asarray(tokens), method="embed")


def wrapped(model, adapter, tokens):
    return jnp.concatenate([adapter.header, embed(model, tokens), adapter.trailer])


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def expected_attention(model, q, k, v, start: int, future=512, sink=4):
    """Scores `[K, S]` of keys at positions from `start` on, of queries at the same positions."""
    (n, N, H), K = q.shape, k.shape[1]
    freq = rope.frequencies(model.config.rope, H)

    def rotations(positions):
        turns = np.zeros((len(positions), H, H))
        for i in range(H // 2):
            j, c, s = i + H // 2, np.cos(positions * freq[i]), np.sin(positions * freq[i])
            turns[:, i, i], turns[:, j, j], turns[:, i, j], turns[:, j, i] = c, c, -s, s
        return turns

    plain = np.einsum("tij,tnj->tni", rotations(-(start + np.arange(n))), q)[sink:]
    mean = rotations(start + n + np.arange(future)).mean(0)
    scores = np.zeros((K, n))
    for head in range(N):
        mu = plain[:, head].mean(0)
        cov = (plain[:, head] - mu).T @ (plain[:, head] - mu) / len(plain)
        mu, cov = mean @ mu, mean @ cov @ mean.T
        keys = k[sink:, head // (N // K)]
        logits = keys @ mu / H**0.5 + np.einsum("si,ij,sj->s", keys, cov, keys) / (2 * H)
        scores[head // (N // K), sink:] += softmax(logits) / (N // K)
    scores *= np.linalg.norm(v, axis=-1).T
    scores[:, :sink] = np.inf
    return scores


def kvzip(q, k, n: int, sink=4):
    """Scores `[K, n]` of the first n keys, by the rows behind them."""
    (T, N, H), K = q.shape, k.shape[1]
    scores = np.zeros((K, n))
    for head in range(N):
        logits = q[n:, head] @ k[:, head // (N // K)].T / H**0.5
        later = np.arange(T) > np.arange(n, T)[:, None]
        shares = softmax(np.where(later, -np.inf, logits))[:, :n].max(0)
        scores[head // (N // K)] = np.maximum(scores[head // (N // K)], shares)
    scores[:, :sink] = 1
    return scores


def check_best(packet, values, scores, ends):
    """Each head of each layer keeps the soft tokens and the tokens with the best scores."""
    for layer, (v, score) in enumerate(zip(values, scores, strict=True)):
        score[:, : ends[0]] = score[:, len(v) - ends[1] :] = np.inf
        best = np.sort(np.argsort(-score, kind="stable")[:, : packet.slots])
        found = np.asarray(packet.cache.v[layer][0])[: packet.slots].swapaxes(0, 1)
        wanted = np.stack([v[rows, head] for head, rows in enumerate(best)])
        np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_expected_attention(model, adapter):
    tokens, p = ids(0, 33), adapter.primer_length
    x = jnp.concatenate([embed(model, adapter.primer), wrapped(model, adapter, tokens)])
    layers = [[a[p:] for a in layer] for layer in read(model, x)]
    scores = [expected_attention(model, *layer, p) for layer in layers]
    compressor = make("expected_attention", 0.4)
    (packet,) = build_packets(model, adapter, [tokens], compressor=compressor)
    assert (packet.length, packet.slots) == (38, 15)
    check_best(packet, [v for _, _, v in layers], scores, (3, 2))


def test_kvzip(small):
    """Packets are read again from their own keys on: the prompt, then the document."""
    adapter = adapter_lib.init(jax.random.key(0), small.params["embedding"], 3, 2)
    tokens, compressor = ids(1, 33), make("kvzip", 0.4)
    prompt = small.tokenizer.encode(compressor.prompt)
    assert len(prompt) > 10
    again = embed(small, [*prompt, *tokens])
    layers = read(small, jnp.concatenate([wrapped(small, adapter, tokens), again]))
    scores = [kvzip(q, k, 38) for q, k, _ in layers]
    (packet,) = build_packets(small, adapter, [tokens], compressor=compressor)
    check_best(packet, [v[:38] for _, _, v in layers], scores, (3, 2))


def test_a_document_that_cannot_be_read_twice_is_refused(small):
    long = ids(1, small.config.max_positions // 2)
    with pytest.raises(ValueError, match="kvzip's second reading"):
        build_packets(small, None, [long], compressor=make("kvzip", 0.4))


# ---- what all compressors do


@pytest.mark.parametrize("name", COMPRESSORS)
def test_packets_know_nothing_of_their_neighbours_and_keep_their_ends(small, name):
    adapter = adapter_lib.init(jax.random.key(0), small.params["embedding"], 3, 2)
    made = distiller.init(small.config, jax.random.key(1), 2)
    adapter = adapter._replace(primer=jnp.asarray(ids(5, 6), jnp.int32), distiller=made)
    documents = [ids(0, 20), ids(1, 30)]
    plain = build_packets(small, adapter, documents)
    compressor = make(name, 0.3)
    packets = build_packets(small, adapter, documents, compressor=compressor)
    (alone,) = build_packets(small, adapter, documents[1:], compressor=compressor)
    assert [p.slots for p in packets] == [7, 10] and alone.slots == 10
    assert [p.length for p in packets] == [p.length for p in plain] == [25, 35]
    assert {p.manifest.compressor for p in packets} == {compressor.label}
    assert alone.manifest == packets[1].manifest != plain[1].manifest
    for packet, whole in zip(packets, plain, strict=True):
        seen = np.asarray(packet.cache.valid[0])
        assert seen.sum() == packet.slots and seen[: packet.slots].all()
        assert (np.asarray(packet.cache.positions)[0, seen] == packet.length - 1).all()
        for v, full in zip(packet.cache.v, whole.cache.v, strict=True):
            for soft in (0, 1, 2, packet.length - 2, packet.length - 1):
                distance = abs(np.asarray(v)[0, : packet.slots] - np.asarray(full)[0, soft]).max(-1)
                assert (distance.min(0) < 2e-5).all(), soft
    for a, b in zip(packets[1].cache.v, alone.cache.v, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    # What keeps all changes nothing.
    everything = build_packets(small, adapter, documents, compressor=make(name, 1.0))
    for packet, whole in zip(everything, plain, strict=True):
        assert packet.slots == packet.length
        for part in "kv":
            for a, b in zip(getattr(packet.cache, part), getattr(whole.cache, part), strict=True):
                a, b = (np.asarray(x)[0, : packet.length] for x in (a, b))
                np.testing.assert_allclose(a, b, atol=2e-5)


def test_packets_of_soft_tokens_alone_are_refused(small):
    adapter = adapter_lib.init(jax.random.key(0), small.params["embedding"], 3, 2)
    documents = [ids(0, 40), ids(1, 15)]
    error = "Document 1: beside the adapter's 5 soft tokens .* 0.25 of 20 slots. Keep 0.3 or more"
    check_kept(adapter, make("knorm", 0.25), documents[0], "Document 0")
    with pytest.raises(ValueError, match=error):
        check_kept(adapter, make("knorm", 0.25), documents[1], "Document 1")
    for keeps in (make("knorm", 0.3), make("knorm/keep_soft_tokens=false", 0.25)):
        check_kept(adapter, keeps, documents[1], "Document 1")
    check_kept(None, make("knorm", 0.01), documents[1], "Document 1")
    # As they say, so it is.
    packets = build_packets(small, adapter, documents, compressor=make("knorm", 0.3))
    assert [p.slots for p in packets] == [13, 6]


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("keep", [0.01, 0.1, 0.3, 0.5, 0.99, 1.0])
def test_sizes_always_hold_the_ends(name, keep):
    compressor = make(name, keep)
    for length in (1, 2, 5, 17, 18, 40, 1000):
        for header, trailer in ((0, 0), (1, 1), (0, 5), (5, 0), (8, 8)):
            if header + trailer < length:
                sizes = compressor.sizes(length, header, trailer)
                assert min(sizes) >= 0 and 0 < sizes.total <= length
                assert sizes.total == max(int(length * keep), header + trailer, 1)
                assert sizes.top >= header and sizes.top + sizes.tail >= header + trailer


@pytest.mark.parametrize(
    ("spec", "keep", "error"),
    [
        ("snapvk", None, "no compressor 'snapvk' .did you mean snapkv"),
        ("snapkv/windw=3", None, "'windw=3' is not a setting .did you mean window.*keep .a number"),
        ("snapkv/window=x", None, "window is a whole number, not 'x'"),
        ("snapkv/kernel=4", None, "kernel odd; not 8 and 4"),
        ("knorm", 1.5, "keep is a share of the slots.*not 1.5"),
        ("knorm/keep=0", None, "not 0.0"),
        (None, 0.5, "keep=0.5 says how much a compressor keeps: name one"),
        ("none/window=8", None, "nothing is compressed, so there is nothing to set"),
        ("snapkv/keep=0.3", 0.5, "keep is given a second time, as 0.5"),
        ("zeromerge/alpha=inf", None, "all of them finite; not 0.1, inf"),
        ("zeromerge/tail=nan", None, "all of them finite; not nan"),
        ("zeromerge/tail=2.7", None, "tail is a share below 1 or a whole number; not 2.7"),
        ("zeromerge/merged=1.5", None, "merged is a share below 1 or a whole number; not 1.5"),
        ("streaming/sink=-3", None, "sink is a number of first tokens, 0 or more; not -3"),
        ("kvzip/sink=-1", None, "0 or more; not -1"),
        ("expected_attention/future=0", None, "future is a number of positions, 1 or more; not 0"),
    ],
)
def test_mistakes_are_named(spec, keep, error):
    with pytest.raises(ValueError, match=error):
        make(spec, keep)


def test_a_label_makes_the_same_compressor():
    for name in COMPRESSORS:
        compressor = make(name, 0.25)
        assert make(compressor.label) == make(shortened(compressor.label)) == compressor
    assert make(None) is make("none") is None
    assert shortened(make("snapkv/window=4").label) == "snapkv/keep=0.5/window=4"
    for other in ("of_another_version/keep=0.5", "", "none"):
        assert shortened(other) == other
    label = "snapkv/keep=0.25/keep_soft_tokens=true/window=8/kernel=5"
    assert make("snapkv", 0.25).label == label  # stores are found by it
