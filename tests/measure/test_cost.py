"""The rows of costs on a tiny model; that the counts are right is tested with their parts."""

import dataclasses
import statistics

import jax
import numpy as np
import pytest

from configs import cost as configs_cost
from kvpacket_jax.measure import point
from kvpacket_jax.measure.cost import ALONE, FULL, measure
from kvpacket_jax.measure.machine import Machine
from kvpacket_jax.measure.request import Entry, first_token, on_tier
from kvpacket_jax.methods import METHODS
from kvpacket_jax.report import cost_points, costs

MACHINE = Machine("it", "cpu", 1, 1, "0", "float32", peak=1e9, bandwidth=1e9)


@pytest.fixture
def model(tiny):
    return tiny("tiny_qwen2")


@pytest.fixture
def request_(model):
    return point.random_request(model, 5, [20, 9], 6)


def entry(model, request_, name: str) -> Entry:
    method = METHODS[name]()
    return Entry(method, method.store(model, request_.preamble, request_.documents))


def test_every_method_is_held_against_the_query_alone_and_the_floor(model, request_, tmp_path):
    assert [len(d) for d in request_.documents] == [20, 9] and len(request_.query) == 6
    assert request_ == point.random_request(model, 5, [20, 9], 6)
    adapter = point.make_adapter(model, None, 3, 2)
    methods = {
        "packets": METHODS["kv_packet"](adapter=adapter),
        "none": METHODS["no_cache"](),
    }
    measured = point.measure_methods(
        model, methods, request_, MACHINE, runs=3, profile_dir=str(tmp_path)
    )
    rows, decoding = measured.rows, measured.decoding
    assert len(decoding.runs_s) == 3 and decoding.token_s == statistics.median(decoding.runs_s) > 0
    assert 0 < decoding.floor_s < rows[0].least_bytes / 1e9
    assert "A token after the first" in costs.decoding_line(rows, decoding)
    assert [row.method for row in rows] == [ALONE, *methods]
    alone, packets, none = rows
    assert alone.to_alone == 1 and alone.context_slots == packets.context_slots
    assert none.context_slots < alone.context_slots
    assert alone.flops_overhead == none.flops_overhead == 0 < packets.flops_overhead
    assert packets.flops_total - alone.flops_total == packets.flops_overhead
    ratios = (a / b for a, b in zip(packets.runs_s, alone.runs_s, strict=True))
    assert packets.to_alone == statistics.median(ratios)
    for row in rows:
        low, high = row.ttft_quartiles_s
        assert min(row.runs_s) <= low <= row.ttft_s <= high <= max(row.runs_s)
        assert row.floor_s == max(row.flops_total, row.least_bytes) / 1e9
        assert row.to_floor == row.ttft_s / row.floor_s
        assert row.peak_bytes > row.cache_bytes > 0 and row.tier == "device"
    trace = b"".join(p.read_bytes() for p in tmp_path.rglob("*.xplane.pb"))
    assert all(name.encode() in trace for name in (*methods, ALONE, "layer_0"))
    times, work = costs.tables(rows)
    assert times.row_count == work.row_count == 3
    legend = costs.legend(rows)
    assert "do not add up to TTFT" in legend and "÷ full" not in legend  # nothing is held to it


def test_what_is_not_asked_for_is_none(model, request_):
    full, bare = measure(
        model, {name: entry(model, request_, name) for name in (FULL, "no_recompute")}, request_, 1
    )
    assert full.to_full == 1 and bare.to_full == bare.ttft_s / full.ttft_s
    assert full.compose_s == 0 and full.prefill_s == full.ttft_s  # one pass is its only part
    for row in (full, bare):
        assert row.to_alone is row.floor_s is row.to_floor is row.peak_bytes is None


def test_packets_in_host_memory_are_loaded_inside_the_clock(model, request_):
    device = entry(model, request_, "no_recompute")
    host = on_tier(device, "host")
    assert host.tier == "host" and on_tier(host, "device").load is None
    logits = (np.asarray(first_token(model, e, request_).logits) for e in (device, host.loaded()))
    np.testing.assert_array_equal(*logits)
    loads = []
    counted = host._replace(load=lambda: loads.append(1) or host.load())
    on_device, on_host = measure(model, {"device": device, "host": counted}, request_, runs=2)
    assert len(loads) == 3 + 1 + 3  # in the chain, for the later parts, by itself
    assert on_device.load_s == 0 < on_host.load_s and on_host.tier == "host"
    same = [f.name for f in dataclasses.fields(on_host) if not f.name.endswith("_s")]
    same = [name for name in same if name not in ("method", "tier")]
    assert all(getattr(on_device, name) == getattr(on_host, name) for name in same)
    with pytest.raises(ValueError, match="tier is 'disk'; it is device or host here"):
        on_tier(device, "disk")


def test_a_host_copy_keeps_what_is_no_array_of_the_device(model):
    stored = {"a": jax.numpy.ones(3), "b": np.arange(2)}
    loaded = on_tier(Entry(METHODS["no_cache"](), stored), "host").loaded().stored
    assert loaded["a"].tolist() == [1, 1, 1] and loaded["b"].tolist() == [0, 1]


@pytest.fixture
def small_config(byte_model, monkeypatch):
    monkeypatch.setattr(point, "measure_machine", lambda *a: MACHINE)
    config = configs_cost.get_config()
    config.update({"model": str(byte_model), "methods": ("no_cache",), "runs": 1})
    config.update({"primer": 4, "preamble": 3, "query": 5})
    return config


def test_points_are_measured_in_turn_and_shown_together(small_config):
    config = small_config
    config.documents = "2x20/4x10/2x80"
    points = list(point.run(config))
    records = cost_points.records(points)
    assert [r["documents"] for r in records[::2]] == [[20, 20], [10] * 4, [80, 80]]
    assert [r["method"] for r in records] == [ALONE, "no_cache"] * 3
    assert [("decoding" in r) for r in records] == [True, False] * 3
    assert cost_points.table(points).row_count == 3
    svg = cost_points.figure(points)
    assert all(name in svg for name in (ALONE, "no_cache", "floor", "cached tokens"))

    config.documents = "1x20/9x999"
    with pytest.raises(ValueError, match="The request spans"):  # before the first is measured
        next(point.run(config))


def test_a_batch_reads_weights_and_context_once(small_config):
    config = small_config
    config.documents, config.batch = "2x20", "1/3"
    one, three = point.run(config)
    assert (one.batch, three.batch) == (1, 3)
    for alone, row in zip(one.rows, three.rows, strict=True):
        # Three queries are four rows, over weights and a context that are read once.
        assert row.flops_matmul == 4 * alone.flops_matmul and row.flops_overhead == 0
        assert alone.least_bytes < row.least_bytes < 2 * alone.least_bytes
    assert "3 such requests at once" in costs.request_line(
        three.rows, three.request, three.model, 3
    )
    config.methods, config.batch = ("no_cache", FULL, "epic:tokens=2"), "1/9"
    _, nine = points = list(point.run(config))
    assert [row.method for row in nine.rows] == [ALONE, "no_cache"]  # the others run it themselves
    assert nine.rows[0].flops_matmul == 12 * one.rows[0].flops_matmul
    columns = cost_points.table(points).columns
    left_out = [c.header for c in columns if list(c.cells)[1] == "-"]
    assert left_out == [f"{FULL} (÷ alone)", "epic:tokens=2 (÷ alone)"]
    assert "-" not in [next(iter(c.cells)) for c in columns]
    config.batch = "1/0"
    with pytest.raises(ValueError, match="batch is '1/0'; it is how many requests run at once"):
        next(point.run(config))


def test_lengths_of_documents():
    assert point.document_lengths("2x1024, 512,1X7".lower()) == [1024, 1024, 512, 7]
    for wrong in ("", "8*4", "0x4", "4x0", "2x3,", "-1", "x3"):
        with pytest.raises(ValueError, match="is not a number of documents and their length"):
            point.document_lengths(wrong)
