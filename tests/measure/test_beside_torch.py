"""The same work in transformers: each run meets the same cache; with torch, the same logits."""

import importlib.util

import jax
import numpy as np
import pytest

from kvpacket_jax.measure import beside_torch, point
from kvpacket_jax.measure.cost import ALONE, FULL
from kvpacket_jax.measure.request import Entry, query_alone
from kvpacket_jax.methods import METHODS
from kvpacket_jax.packets.buckets import CHUNK
from kvpacket_jax.report import costs
from tests.support.golden import FAMILIES, GOLDEN


class Counting:
    """In transformers' place: caches that count their tokens, and a note of each read."""

    name = "a peer"

    class Cache:
        def __init__(self, slots):
            self.slots = slots

    def __init__(self):
        self.reads = []

    def cache(self, slots):
        return self.Cache(slots)

    def build(self, ids):
        self.read(ids, self.cache(0))

    def rewind(self, cache, slots):
        assert slots <= cache.slots
        cache.slots = slots

    def read(self, ids, cache):
        self.reads.append((cache.slots, len(ids)))
        cache.slots += len(ids)
        return np.zeros(3, np.float32)

    decode = beside_torch.Peer.decode


def compared(model, peer):
    request = point.random_request(model, 5, [20, 9], 6)
    methods = {"kv_packet": METHODS["kv_packet"](), FULL: METHODS[FULL]()}
    stored = {
        name: Entry(method, method.store(model, request.preamble, request.documents))
        for name, method in methods.items()
    }
    entries = {ALONE: query_alone(model, stored["kv_packet"], request)} | stored
    return beside_torch.compare(model, peer, entries, request, runs=2)


def test_every_run_meets_the_same_cache(tiny):
    peer = Counting()
    pairs = compared(tiny("tiny_qwen2"), peer)
    assert [len(p.ours_s) for p in pairs] == [len(p.theirs_s) for p in pairs] == [2] * 4
    tokens = [(34 + 6 + i, 1) for i in range(CHUNK)]
    one_round = [(0, 20), (34, 6), (34, 6), *tokens, (5, 35)]
    assert peer.reads == 3 * one_round  # one round warms up
    by_work = {p.work: p for p in pairs}
    assert set(by_work) == {beside_torch.DOCUMENT, ALONE, beside_torch.TOKEN, FULL}
    table = costs.beside_table(point.Beside(peer.name, pairs))
    assert table.row_count == 4 and "a peer" in table.columns[0].header


def test_a_ratio_is_the_median_of_rounds():
    assert beside_torch.Pair("it", (2.0, 3.0, 9.0), (1.0, 2.0, 3.0)).ratio == 2


def test_there_is_none_without_torch_off_the_cpu_or_without_files(tiny, monkeypatch):
    model, source = tiny("tiny_qwen2"), str(GOLDEN / "tiny_qwen2")
    shared = tiny("tiny_qwen2", shared_layers="1:2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert beside_torch.available(model, source)
    assert not beside_torch.available(shared, source)
    assert not beside_torch.available(model, "random:qwen2.5-0.5b")
    with monkeypatch.context() as on_a_gpu:
        on_a_gpu.setattr(jax, "default_backend", lambda: "gpu")
        assert not beside_torch.available(model, source)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not beside_torch.available(model, source)


@pytest.mark.parametrize("name", FAMILIES)
def test_both_sides_compute_the_same(tiny, name):
    pytest.importorskip("torch", reason="torch is no requirement")
    model = tiny(name)
    peer = beside_torch.Peer(model, str(GOLDEN / name), None, 1)
    request = point.random_request(model, 0, [20], 6)
    ids = [*request.documents[0], *request.query]
    method = METHODS[FULL]()
    prepared = method.prepare(model, method.store(model, [], request.documents), request)
    cache = peer.cache(0)
    logits = peer.read(ids, cache)
    np.testing.assert_allclose(prepared.prefilled.logits[0], logits, atol=1e-3)
    assert len(compared(model, peer)) == 4
