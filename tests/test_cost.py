"""Costs of requests on a tiny model, against formulas and against XLA."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import load_case

from kvpacket_jax import profiling
from kvpacket_jax.adapter import Adapter
from kvpacket_jax.buckets import Buckets, near
from kvpacket_jax.cost import Entry, cost
from kvpacket_jax.methods import METHODS, Request
from models import kv_cache


@pytest.fixture(scope="module")
def case(tiny):
    return load_case("qwen2_A", tiny("tiny_qwen2"))


@pytest.fixture(scope="module")
def request_(case):
    return Request(case.preamble, case.documents, case.query)


def entry(case, name: str, **settings) -> Entry:
    method = METHODS[name](**settings)
    return Entry(method, method.store(case.model, case.preamble, case.documents))


def matmul_flops(config, rows: int, slots: int) -> int:
    """Of `rows` rows that attend to `slots` slots, and one row's logits."""
    c = config
    heads = 2 * c.num_heads + 2 * c.num_kv_heads
    layer = c.dim * heads * c.head_dim + 3 * c.dim * c.mlp_dim
    attention = 2 * c.num_heads * c.head_dim * slots
    return 2 * (c.num_layers * rows * (layer + attention) + c.dim * c.vocab_size)


def test_full_recompute_costs_one_pass_over_documents_and_query(case, request_):
    full = entry(case, "full_recompute")
    found = cost(case.model, full, request_)
    rows = near(sum(map(len, case.documents)) + len(case.query))
    slots = rows + sum(p.cache.num_slots for p in full.stored)
    assert found.flops_matmul == matmul_flops(case.model.config, rows, slots)
    query = Buckets().query(len(case.query))
    tail = Buckets().tail(query, 0)
    # The query alone has the same slots before it, and a tail with room for an answer.
    alone = matmul_flops(case.model.config, query, slots - query + tail)
    overhead = found.flops_overhead / (found.flops_matmul - alone)
    assert 1 < overhead < 1.3  # element-wise work is much of a tiny model's
    assert found.flops_total > found.flops_overhead > 0


def test_packets_cost_the_moves_beyond_the_query(case, request_):
    packets = entry(
        case, "kv_packet", adapter=Adapter(case.arrays["header"], case.arrays["trailer"])
    )
    found = cost(case.model, packets, request_)
    config = case.model.config
    moves = sum(
        profiling.count_flops(
            lambda cache: kv_cache.move(config, cache, np.int32(1)).k, packet.cache
        ).total
        for packet in packets.stored
    )
    marks = sum(packet.cache.num_slots for packet in packets.stored)  # their positions too
    # Beyond them only the arithmetic of where slices start.
    assert moves + marks <= found.flops_overhead < 1.05 * (moves + marks)
    # The rotation itself: 3 operations a number, and its angles.
    numbers = marks * config.num_layers * config.num_kv_heads * config.head_dim
    assert moves >= 3 * numbers


def test_no_cache_has_no_overhead(case, request_):
    found = cost(case.model, entry(case, "no_cache"), request_)
    assert found.flops_overhead == 0 < found.flops_matmul < found.flops_total


@pytest.mark.parametrize("name", METHODS)
def test_costs_need_shapes_only_and_agree_with_xla(case, request_, name):
    full = entry(case, name)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (case.model.params, full.stored)
    )
    model = dataclasses.replace(case.model, params=abstract[0])
    found = cost(model, Entry(full.method, abstract[1]), request_)
    assert found == cost(case.model, full, request_)
    assert found.xla_flops == pytest.approx(found.flops_total, rel=0.05)


@pytest.mark.parametrize("name", ["full_recompute", "kv_packet"])
def test_costs_do_not_depend_on_how_layers_are_walked(tiny, case, request_, name):
    scanned = tiny("tiny_qwen2", scan_layers=True, query_block=16)
    method = METHODS[name]()
    stored = method.store(scanned, case.preamble, case.documents)
    found = cost(scanned, Entry(method, stored), request_)
    plain = cost(case.model, entry(case, name), request_)
    assert found.xla_flops == plain.xla_flops
