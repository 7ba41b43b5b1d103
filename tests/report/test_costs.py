"""What is shown of costs: every figure has a heading and says what it is."""

import dataclasses
import io

import rich.console

from kvpacket_jax.data import Example, Question
from kvpacket_jax.evaluate.compare import Comparison, Reply
from kvpacket_jax.measure.cost import Cost
from kvpacket_jax.report import costs, story, tables

COST = Cost(
    method="full_recompute",
    tier="device",
    ttft_s=4.0,
    ttft_quartiles_s=(3.0, 5.0),
    runs_s=(3.0, 4.0, 5.0),
    load_s=0.0,
    compose_s=0.0,
    prefill_s=4.0,
    to_alone=None,
    to_full=1.0,
    floor_s=2.0,
    to_floor=2.0,
    flops_total=10**12,
    flops_overhead=10**11,
    flops_matmul=10**12,
    xla_flops=None,
    least_bytes=10**9,
    peak_bytes=None,
    context_slots=512,
    cache_bytes=10**6,
    cached_tokens=100,
)
PACKETS = dataclasses.replace(
    COST, method="kv_packet", ttft_s=0.5, runs_s=(0.3, 0.5, 0.5), compose_s=0.1, prefill_s=0.3
)
BARE = dataclasses.replace(PACKETS, method="no_recompute")


def text(*shown) -> str:
    out = io.StringIO()
    rich.console.Console(file=out, width=200).print(*shown)
    return out.getvalue()


def test_columns_that_no_row_has_are_left_out_and_not_explained():
    times, work = map(text, costs.tables([COST, PACKETS]))
    legend = costs.legend([COST, PACKETS])
    for word in ("÷ full", "÷ floor"):
        assert word in times and word in legend
    for word in ("÷ alone", "peak memory", "XLA"):
        assert word not in times + work + legend
    assert "3,000 to 5,000" in times and "100.0%" in times
    assert "do not add up to TTFT" in legend


def test_every_heading_is_explained():
    legend = costs.meanings(costs.TIMES + costs.WORK)
    for field in costs.TIMES + costs.WORK:
        assert costs.COLUMNS[field].heading.removesuffix(" ms") in legend
    fields = {f.name for f in dataclasses.fields(Cost)}
    assert set(costs.COLUMNS) <= fields


def comparison() -> Comparison:
    right = {
        "full_recompute": (True, True),
        "kv_packet": (True, False),
        "no_recompute": (False,) * 2,
    }
    replies = [
        Reply(name, f"Question {i}?", "it", "it", ok, 0.5)
        for name, oks in right.items()
        for i, ok in enumerate(oks)
    ]
    return Comparison(replies, [COST, PACKETS, BARE])


def test_the_demo_says_what_to_conclude_and_what_to_type():
    said = story.conclusion(comparison(), "a primer", "kv_packet")
    assert "10 times sooner than full_recompute's" in said  # of 10, 8 and 10, by rounds
    assert "Right of 2 answers: full_recompute 2, kv_packet 1, no_recompute 0" in said
    assert "the adapter, a primer, wins back part of" in said
    assert "in doubt" not in said  # it is not known here how sure it was
    unsure = comparison()
    unsure.replies[3] = unsure.replies[3]._replace(confidence=0.2)
    unsure.replies[2] = unsure.replies[2]._replace(confidence=0.6)
    said = story.conclusion(unsure, "a primer", "kv_packet")
    assert said.endswith(
        "reads the documents in full: here for 1 of 2 questions, and 2 are right with that."
    )
    unsure.replies[2] = unsure.replies[2]._replace(elsewhere=True)
    assert "here for 2 of 2" in story.conclusion(unsure, "a primer", "kv_packet")
    assert "wins back none of" in story.conclusion(comparison(), "a primer", "no_recompute")
    worse = story.conclusion(comparison(), "a primer", "no_recompute", "kv_packet")
    assert "the adapter, a primer, costs right answers (1): do without it" in worse
    nothing = story.conclusion(comparison(), "a primer", "kv_packet", "full_recompute")
    assert "costs right answers" in nothing and "nothing to win" not in nothing
    assert "loses no answer" in story.conclusion(comparison(), "a", *["full_recompute"] * 2)
    none = story.conclusion(comparison(), "none", "kv_packet")
    assert none.endswith("which has the same caches without an adapter.")
    assert "--model" not in story.next_command("a", default="a")
    assert story.next_command("b", default="a").count(" --model=b ") == 2
    shown = text(tables.method_table(comparison()))
    assert "1/2" in shown and "0.50" in shown
    example = Example("it", ("word " * 200, "other"), (Question("Why [x]?", ()),))
    opening = story.opening(example)
    assert "first of 2 documents" in opening and 'questions: "Why [x]?"' in opening
    assert max(map(len, opening.splitlines())) <= 110


def test_rows_of_a_comparison_are_flat_with_their_costs():
    rows = comparison().rows()
    assert len(rows) == 6 and rows[2]["method"] == "kv_packet" and rows[2]["ttft_s"] == 0.5
    assert rows[3]["right"] is False and rows[3]["flops_overhead"] == 10**11
