"""Packets laid into pages answer as composed ones do."""

import dataclasses

import jax
import numpy as np
import pytest

from kvpacket_jax.compress import make
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.compose import compose
from kvpacket_jax.packets.generate import generate
from kvpacket_jax.packets.packet import build_packets
from kvpacket_jax.packets.pages import PAGE, lay
from kvpacket_jax.packets.prefill import prefill

SMALL = Buckets(queries=(4, 8), min_packet=8, soft_tokens=0, contexts=(64, 128), new_tokens=16)


def ids(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 320, length).tolist()


def answers(model, context, start, queries):
    ready = prefill(model, (context,), queries, start, 12, SMALL)
    return np.asarray(ready.logits), generate(model, (context,), ready, 12, stop_ids=())


def check(model, packets, queries=((1, 2, 3), (5, 8, 13, 21, 34))):
    composed, start = compose(model, packets, SMALL)
    laid = lay(model, packets, SMALL)
    assert laid.length == start
    expected, their_tokens = answers(model, composed, start, queries)
    found, tokens = answers(model, laid.context(), start, queries)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert tokens == their_tokens


@pytest.mark.parametrize(
    ("name", "scanned"),
    [
        ("tiny_llama31", True),
        ("tiny_qwen2", False),
        ("tiny_qwen3", False),
        pytest.param("tiny_llama31", False, marks=pytest.mark.slow),
        pytest.param("tiny_qwen2", True, marks=pytest.mark.slow),
        pytest.param("tiny_qwen3", True, marks=pytest.mark.slow),
    ],
)
def test_pages_answer_as_the_composed_packets(tiny, name, scanned):
    model = tiny(name, scan_layers=scanned)
    adapter = adapter_lib.init(jax.random.key(0), model.params["embedding"], 3, 2)
    packets = build_packets(model, adapter, [ids(i, n) for i, n in enumerate((5, 30, 16))], SMALL)
    check(model, [*build_packets(model, None, [ids(7, 3)], SMALL), *packets])
    check(model, packets[::-1])


def test_packets_that_end_on_pages_and_a_last_one_that_fills_the_pool(tiny):
    model = tiny("tiny_qwen2")
    lengths = (PAGE, 2 * PAGE, 1)
    packets = build_packets(model, None, [ids(i, n) for i, n in enumerate(lengths)], SMALL)
    assert lay(model, packets, SMALL).pool.batch == 64 // PAGE
    check(model, packets)


@pytest.mark.parametrize("label", ["snapkv/window=4/kernel=3", "zeromerge"])
def test_compressed_packets_and_whole_ones_share_a_pool(tiny, label):
    model, documents = tiny("tiny_qwen2"), [ids(i, n) for i, n in enumerate((40, 33))]
    small = build_packets(model, None, documents, SMALL, compressor=make(label, 0.5))
    whole = build_packets(model, None, [ids(5, 9)], SMALL)
    assert small[0].slots < small[0].length
    check(model, [*whole, *small])
    check(model, [*small, *whole])


def test_shared_layers_leave_keys_out_of_packets(tiny):
    model = tiny("tiny_qwen2", shared_layers="1:3")
    adapter = adapter_lib.init(jax.random.key(0), model.params["embedding"], 3, 2)
    adapter = adapter._replace(primer=np.array(ids(9, 7), np.int32))
    documents = [ids(i, n) for i, n in enumerate((40, 33))]
    whole = build_packets(model, adapter, documents, SMALL)
    small = build_packets(model, adapter, documents, SMALL, compressor=make("snapkv", 0.5))
    check(model, [*whole, *small])
    # Two of four layers have no keys.
    (plain,) = build_packets(tiny("tiny_qwen2"), adapter, documents[:1], SMALL)
    sizes = [sum(x.nbytes for x in (*p.cache.k, *p.cache.v)) for p in (whole[0], plain)]
    assert sizes[0] * 8 == sizes[1] * 6


def test_packets_of_another_model_or_too_many_are_refused(tiny):
    model = tiny("tiny_qwen2")
    packets = build_packets(model, None, [ids(0, 9)], SMALL)
    other = dataclasses.replace(packets[0].manifest, model="0" * 64)
    with pytest.raises(ValueError, match="Packet 0 was built with another model: 0000"):
        lay(model, [dataclasses.replace(packets[0], manifest=other)], SMALL)
    limit = model.config.max_positions
    with pytest.raises(ValueError, match=f"{limit:,}|{limit}"):
        lay(model, packets * (limit // 9 + 1), SMALL)
