"""The rows of launch/cost.py on a tiny model; that they are right is tested with their parts."""

import statistics

import pytest

from kvpacket_jax.measure import cost_report
from kvpacket_jax.measure.machine import Machine
from kvpacket_jax.methods import METHODS

MACHINE = Machine("it", "cpu", 1, 1, "0", "float32", peak=1e9, bandwidth=1e9)


def test_every_method_is_held_against_the_query_alone_and_the_floor(tiny, tmp_path):
    model = tiny("tiny_qwen2")
    request = cost_report.random_request(model, 5, [20, 9], 6)
    assert [len(d) for d in request.documents] == [20, 9] and len(request.query) == 6
    assert request == cost_report.random_request(model, 5, [20, 9], 6)
    soft = cost_report.soft_tokens(model, None, 3, 2)
    methods = {
        "packets": METHODS["kv_packet"](adapter=soft),
        "none": METHODS["no_cache"](),
    }
    rows = cost_report.measure(model, methods, request, MACHINE, 3, str(tmp_path))
    assert [row.method for row in rows] == [cost_report.ALONE, *methods]
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
    trace = b"".join(p.read_bytes() for p in tmp_path.rglob("*.xplane.pb"))
    assert all(name.encode() in trace for name in (*methods, cost_report.ALONE, "layer_0"))
    times, work = cost_report.tables(rows)
    assert times.row_count == work.row_count == 3


def test_lengths_of_documents():
    assert cost_report.document_lengths("2x1024, 512,1X7".lower()) == [1024, 1024, 512, 7]
    for wrong in ("", "8*4", "0x4", "4x0", "2x3,", "-1", "x3"):
        with pytest.raises(ValueError, match="is not a number of documents and their length"):
            cost_report.document_lengths(wrong)
