"""Compressors against what published code computes from the same tiny models."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from kvpacket_jax.compress import make
from kvpacket_jax.measure.request import Entry
from kvpacket_jax.measure.work import count_work
from kvpacket_jax.methods import METHODS, Request
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.compose import compose
from kvpacket_jax.packets.generate import generate
from kvpacket_jax.packets.packet import build_packets
from kvpacket_jax.packets.prefill import prefill
from models import paged
from tests.support.golden import CASES, GOLDEN
from tests.support.methods import golden_case, run

INDEX = json.loads((GOLDEN / "compress.json").read_text())
PRESSES = {
    "kv_packet_knorm25": "knorm/keep=0.75/keep_soft_tokens=false",
    "kv_packet_streaming40": "streaming/keep=0.6/sink=2/keep_soft_tokens=false",
}
SNAPKV = [(case, label) for case, sets in INDEX.items() for label in sets["snapkv"]]
ZSMERGE = [(case, label) for case, sets in INDEX.items() for label in sets.get("zsmerge", ())]


def in_order(k, v):
    """Keys and values `[L, K, S, H]` with the slots of each head in an order of their own.

    That of a mixture of the key's numbers: values of equal tokens are equal in the first layer.
    """
    order = np.argsort(k @ np.linspace(1, 2, k.shape[-1]), axis=-1)[..., None]
    return np.take_along_axis(k, order, 2), np.take_along_axis(v, order, 2)


def check(case, arrays, label: str, settings: dict):
    papers = settings | {"opening": False}
    prepared, cache, first, greedy = run(case, "kv_packet", papers)
    assert prepared.query_start == arrays[f"{label}/query_pos"][0]
    published = arrays[f"{label}/cache_k"], arrays[f"{label}/cache_v"]
    if settings["compress"].startswith("knorm") and (tied := tie(cache, published)):
        put(cache, published, tied)
        context = with_slots(case, prepared.context, cache)
        prefilled = prefill(case.model, context, [case.query], prepared.query_start, 8)
        first = np.asarray(prefilled.logits[0])
        greedy = generate(case.model, context, prefilled, 8, stop_ids=())[0]
    for found, wanted in zip(in_order(*cache), in_order(*published), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-4)
    np.testing.assert_allclose(first, arrays[f"{label}/first_logits"], atol=1e-3)
    assert greedy == arrays[f"{label}/greedy"].tolist()


def tie(cache, published):
    """The layer, head, and slot here and there, of the one key that is another of the same norm.

    None if there is none. Which of two keys stays whose norms are equal to float32's last bit is a
    matter of the machine's rounding.
    """
    far = np.abs(cache[0][:, :, :, None] - published[0][:, :, None]).max(-1) > 2e-4
    here, there = np.argwhere(far.all(3)), np.argwhere(far.all(2))
    if len(here) == 0:
        return None
    ((layer, head, slot),), ((*home, other),) = here, there
    assert home == [layer, head]
    keys = cache[0][layer, head, slot], published[0][layer, head, other]
    found, wanted = (np.linalg.norm(key.astype(np.float64)) for key in keys)
    assert abs(found - wanted) <= np.finfo(np.float32).eps * wanted
    return layer, head, slot, other


def put(cache, published, tied):
    """Puts the published key and value into the place of the other one."""
    layer, head, slot, other = tied
    for part, wanted in zip(cache, published, strict=True):
        part[layer, head, slot] = wanted[layer, head, other]


def with_slots(case, context, cache):
    """The context with these keys and values `[L, K, S, H]` in its valid slots, in their order."""
    made, start = [], 0
    for old in (paged.ready(case.model.config, c) for c in context):
        valid = np.flatnonzero(old.valid[0])
        parts = {}
        for name, slots in zip("kv", cache, strict=True):
            own_layers = getattr(old, name)
            layers = [np.array(x) for x in own_layers]
            for layer, own in zip(layers, slots, strict=True):
                layer[0, valid] = own[:, start : start + len(valid)].swapaxes(0, 1)
            joined = tuple if isinstance(own_layers, tuple) else jnp.stack
            parts[name] = joined([jnp.asarray(layer) for layer in layers])
        made.append(old._replace(**parts))
        start += len(valid)
    return tuple(made)


def adapter_of(case) -> Adapter:
    return Adapter(case.arrays["header"], case.arrays["trailer"])


@pytest.mark.parametrize("label", PRESSES)
@pytest.mark.parametrize("name", CASES)
def test_presses_of_the_published_code(tiny, name, label):
    case = golden_case(tiny, name)
    settings = {"adapter": adapter_of(case), "compress": PRESSES[label]}
    check(case, case.arrays, label, settings)


@pytest.mark.parametrize(("name", "label"), SNAPKV)
def test_snapkv(tiny, name, label):
    case, published = golden_case(tiny, name), INDEX[name]["snapkv"][label]
    spec = (
        f"snapkv/keep={1 - published['compression_ratio']}/window={published['window_size']}"
        f"/kernel={published['kernel_size']}"
        f"/keep_soft_tokens={str(published['keep_filler_tokens']).lower()}"
    )
    adapter = adapter_of(case) if published["wrapped"] else None
    arrays = np.load(GOLDEN / f"snapkv_{name}.npz")
    check(case, arrays, label, {"adapter": adapter, "compress": spec})


@pytest.mark.parametrize(("name", "label"), ZSMERGE)
def test_zeromerge(tiny, name, label):
    case, published = golden_case(tiny, name), INDEX[name]["zsmerge"][label]
    arrays, given = np.load(GOLDEN / f"zsmerge_{name}.npz"), published["given"]
    budget, length = given["cache_budget"], published["length"]
    keep = budget if budget < 1 else (budget + 0.5) / length
    spec = (
        f"zeromerge/keep={keep}/tail={given['cache_tail']}/merged={given['cache_dense']}"
        f"/alpha={given['scale_factor']}/discount={given['shrink_factor']}/keep_soft_tokens=false"
    )
    adapter = adapter_of(case) if published["wrapped"] else None
    document = case.documents[published["doc"]]
    (packet,) = build_packets(case.model, adapter, [document], compressor=make(spec))
    weight, k, v = (arrays[f"{label}/{part}"] for part in ("weight", "k", "v"))
    assert (packet.length, packet.slots) == (length, weight.shape[-1])
    bias = np.stack([np.asarray(b)[0] for b in packet.cache.bias])[..., : packet.slots]
    np.testing.assert_allclose(bias, given["scale_factor"] * np.log(weight), atol=1e-6)
    merged = given["cache_dense"] if given["cache_dense"] >= 1 else int((weight > 1).sum(-1).max())
    found = [
        np.stack([np.asarray(x)[0, : packet.slots] for x in part]).swapaxes(1, 2)
        for part in (packet.cache.k, packet.cache.v)
    ]
    for part, wanted in zip(found, (k, v), strict=True):  # of means the order is given
        np.testing.assert_allclose(part[:, :, :merged], wanted[:, :, :merged], atol=2e-4)
    for part, wanted in zip(in_order(*found), in_order(k, v), strict=True):
        np.testing.assert_allclose(part, wanted, atol=2e-4)
    context, start = compose(case.model, [packet])
    ready = prefill(case.model, (context,), [case.query[:1]], start, 1)
    np.testing.assert_allclose(ready.logits[0], arrays[f"{label}/step_logits"][0], atol=1e-3)


def test_a_compressed_context_costs_less(tiny):
    case = golden_case(tiny, "llama31_A")  # scanned: XLA's count is of layers one by one
    request = Request(case.preamble, case.documents, case.query)
    small = dict(buckets=Buckets(min_packet=8, soft_tokens=0, contexts=tuple(range(16, 400, 16))))
    work = []
    for settings in ({}, {"compress": "zeromerge", "keep": 0.4}):
        method = METHODS["no_recompute"](**settings, **small)
        entry = Entry(method, method.store(case.model, case.preamble, case.documents))
        work.append(count_work(case.model, entry, request))
    whole, compressed = work
    assert compressed.cached_tokens == whole.cached_tokens
    for field in (
        "context_slots",
        "flops_total",
        "flops_overhead",
        "xla_flops",
        "least_bytes",
        "cache_bytes",
    ):
        assert 0 < getattr(compressed, field) < getattr(whole, field), field
    kept = len(case.preamble) + sum(int(0.4 * len(d)) for d in case.documents)
    share = kept / whole.cached_tokens  # whatever the buckets pad; a bias is a few bytes more
    assert compressed.cache_bytes == pytest.approx(share * whole.cache_bytes, rel=0.08)
