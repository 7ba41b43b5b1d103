"""Costs of requests on a tiny model, against formulas and against XLA."""

import dataclasses

import jax
import numpy as np
import pytest

import models
from kvpacket_jax.measure import flops, memory
from kvpacket_jax.measure.request import Entry, Ready, first_token, query_alone
from kvpacket_jax.measure.work import context_slots, count_work, least_bytes, peak_bytes
from kvpacket_jax.methods import METHODS, Prepared, Request
from kvpacket_jax.methods.no_cache import NoCache
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import Buckets, bucket
from kvpacket_jax.packets.compose import compose
from kvpacket_jax.packets.packet import Manifest, Packet, provenance_of
from kvpacket_jax.packets.prefill import prefill
from models import kv_cache, paged
from models.transformer import Transformer, init_params
from tests.support.golden import load_case

SHAPE = dataclasses.replace(models.CONFIGS["qwen2.5-coder-0.5b"], num_layers=6)


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


@pytest.mark.parametrize("family", ["llama31", "qwen3"])
def test_full_recompute_costs_one_pass_over_documents_and_query(tiny, family):
    case = load_case(f"{family}_A", tiny(f"tiny_{family}"))
    request_ = Request(case.preamble, case.documents, case.query)
    full = entry(case, "full_recompute")
    found = count_work(case.model, full, request_)
    rows = bucket(sum(map(len, case.documents)) + len(case.query))
    slots = rows + sum(p.cache.num_slots for p in full.stored)
    assert found.flops_matmul == matmul_flops(case.model.config, rows, slots)
    query = Buckets().query(len(case.query))
    alone = matmul_flops(case.model.config, query, slots)  # the same slots before it
    overhead = found.flops_overhead / (found.flops_matmul - alone)
    assert 1 < overhead < 1.3  # element-wise work is much of a tiny model's
    assert found.flops_total > found.flops_overhead > 0


def test_packets_cost_the_moves_beyond_the_query(case, request_):
    packets = entry(
        case, "kv_packet", adapter=Adapter(case.arrays["header"], case.arrays["trailer"])
    )
    found = count_work(case.model, packets, request_)
    config, context = case.model.config, packets.stored.context()
    copied = flops.count_flops(lambda c: paged.copied(config, c), context).total
    assert found.flops_overhead == pytest.approx(copied, rel=0.05)
    # The rotation itself: 3 operations a number, and its angles.
    numbers = context.num_slots * config.num_layers * config.num_kv_heads * config.head_dim
    assert found.flops_overhead >= 3 * numbers


def test_a_short_query_turns_and_no_cached_key_is_moved(tiny):
    model = tiny("tiny_qwen2")
    request = Request([], [list(range(30))], [1, 2])  # 2 rows of 4 heads, pages of 16 slots
    method = METHODS["kv_packet"](buckets=Buckets(queries=(2,)))
    stored = method.store(model, [], request.documents)
    found = count_work(model, Entry(method, stored), request)
    context = stored.context()
    copied = flops.count_flops(lambda c: paged.copied(model.config, c), context).total
    assert 0 < found.flops_overhead < 0.6 * copied


def test_no_cache_has_no_overhead(case, request_):
    found = count_work(case.model, entry(case, "no_cache"), request_)
    assert found.flops_overhead == 0 < found.flops_matmul < found.flops_total


@pytest.mark.parametrize("name", METHODS)
def test_costs_need_shapes_only_and_agree_with_xla(case, request_, name):
    full = entry(case, name)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (case.model.params, full.stored)
    )
    model = dataclasses.replace(case.model, params=abstract[0])
    found = count_work(model, Entry(full.method, abstract[1]), request_)
    assert found == count_work(case.model, full, request_)
    assert found.xla_flops == pytest.approx(found.flops_total, rel=0.05)


@pytest.mark.parametrize("name", ["full_recompute", "kv_packet"])
def test_costs_do_not_depend_on_how_layers_are_walked(tiny, case, request_, name):
    plain = count_work(case.model, entry(case, name), request_)
    for walked in ({"scan_layers": True, "query_block": 16}, {"query_block": 16, "key_block": 8}):
        model, method = tiny("tiny_qwen2", **walked), METHODS[name]()
        stored = method.store(model, case.preamble, case.documents)
        found = count_work(model, Entry(method, stored), request_, peak=True)
        assert found.xla_flops == plain.xla_flops and found.peak_bytes > 0
    whole = tiny("tiny_qwen2", query_block=16, key_block=0)
    stored = method.store(whole, case.preamble, case.documents)
    assert found.flops_total == count_work(whole, Entry(method, stored), request_).flops_total


@pytest.fixture(scope="module")
def shape() -> models.LanguageModel:
    """6 layers of the 0.5B shape without arrays; in float32, where no row is padded to eight."""
    params = jax.eval_shape(lambda: init_params(SHAPE, jax.random.key(0)))
    return models.LanguageModel("0.5B", SHAPE, Transformer(SHAPE), params, None, "f" * 64)


def abstract_packet(model, length: int) -> Packet:
    slots = Buckets().packet(length)
    cache = jax.eval_shape(lambda: kv_cache.init(model.config, 1, slots, model.dtype))
    return Packet(cache, length, Manifest(**vars(provenance_of(model, None)), tokens=()))


def test_a_prefill_at_the_real_shape_agrees_with_xla(shape):
    context = jax.eval_shape(lambda: kv_cache.init(SHAPE, 1, 1024, shape.dtype))
    alone = Entry(Ready(1000), (context,))
    found = count_work(shape, alone, Request([], [], [1] * 24))
    assert found.flops_matmul == matmul_flops(SHAPE, 24, 1024 + 24)
    assert found.flops_total == pytest.approx(found.xla_flops, rel=0.01)
    assert found.flops_overhead == 0


def test_composition_alone_agrees_with_xla_within_a_factor_of_2(shape):
    packets = [abstract_packet(shape, n) for n in (16, 250, 250)]

    def composition(caches):
        placed = [dataclasses.replace(p, cache=c) for p, c in zip(packets, caches, strict=True)]
        return compose(shape, placed)[0]

    caches = [p.cache for p in packets]
    counted = flops.count_flops(composition, caches).total
    assert 0.5 < counted / flops.xla_flops(composition, caches) < 2
    numbers = sum(c.num_slots for c in caches) * SHAPE.num_layers * SHAPE.num_kv_heads * 64
    assert counted > 3 * numbers


def test_the_least_bytes_are_parameters_caches_and_new_rows(case, request_):
    model, size = case.model, memory.tree_bytes
    assert model.config.tie_embeddings  # so that every parameter is read
    c = model.config
    row = 2 * c.num_layers * c.num_kv_heads * c.head_dim * 4 + 4 + 1  # position and valid too
    rows = 2 * Buckets().query(len(case.query)) * row
    bare = entry(case, "no_cache")
    assert least_bytes(model, bare, request_) == size((model.params, bare.stored)) + rows
    packets = entry(case, "kv_packet")  # read in place
    assert least_bytes(model, packets, request_) == (
        size((model.params, packets.stored)) + rows + 2 * size(packets.stored.context()[1:])
    )

    class TwoPasses(NoCache):
        def prepare(self, model, stored, request, new_tokens=0):
            read = prefill(model, tuple(p.cache for p in stored), [request.query], 20)
            return Prepared((*(p.cache for p in stored), read.tail), 50)

    twice = Entry(TwoPasses(), bare.stored)
    more = least_bytes(model, twice, request_) - least_bytes(model, bare, request_)
    unused = size([model.params[k] for k in ("embedding", "final_norm")])  # for its logits only
    last = size([model.params["layers"][-1][k] for k in ("q", "o", "mlp_norm", "mlp")])
    tail = 2 * row * Buckets().tail(len(case.query), 0)
    assert size(model.params) - unused - last <= more - tail < size(model.params)


def test_an_embedding_table_that_is_looked_up_only_is_not_read(shape):
    context = jax.eval_shape(lambda: kv_cache.init(SHAPE, 1, 512, shape.dtype))
    found = least_bytes(shape, Entry(Ready(500), (context,)), Request([], [], [1] * 8))
    rest = memory.tree_bytes((shape.params, context))
    table = 4 * SHAPE.vocab_size * SHAPE.dim
    row = 2 * SHAPE.num_layers * 2 * 64 * 4 + 5
    assert found == rest - table + 2 * 8 * row


def test_peak_memory_holds_parameters_and_packets_and_no_copy_of_them(case, request_):
    packets = entry(case, "kv_packet")
    alone = query_alone(case.model, packets, request_)
    held, ready = (memory.tree_bytes((case.model.params, e.stored)) for e in (packets, alone))
    peak = peak_bytes(case.model, packets, request_)
    assert peak > held
    # What the pass takes besides, over pages and over a cache that is ready: a layer's, at most.
    layer = memory.tree_bytes(alone.stored) // case.model.config.num_layers
    assert peak - held <= peak_bytes(case.model, alone, request_) - ready + layer


def test_the_query_alone_is_the_pass_of_kv_packet(case, request_):
    packets = entry(case, "kv_packet")
    alone = query_alone(case.model, packets, request_)
    assert count_work(case.model, alone, request_).flops_overhead == 0
    assert context_slots(case.model, alone, request_) == context_slots(
        case.model, packets, request_
    )
    found, expected = (
        np.asarray(first_token(case.model, e, request_).logits) for e in (alone, packets)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)
