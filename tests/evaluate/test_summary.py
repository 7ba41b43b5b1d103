"""Summaries of answers: means, paired differences, splits, intervals."""

import io

import numpy as np
import pytest
import rich.console

from kvpacket_jax.evaluate import summary
from kvpacket_jax.report import page_tables, tables


def rows(method: str, f1, same, setting: str = "", per_set: int = 2):
    return [
        {
            "example": f"set-{i // per_set}",
            "question": i % per_set,
            "method": method,
            "setting": setting,
            "answer": "a" if value == 1 else "b",
            "expected": ["a"],
            "f1": value,
            "exact_match": value == 1,
            "same": equal,
            "kl": 1.0 - equal,
            "kl_answer": 2.0 - 2 * equal,
        }
        for i, (value, equal) in enumerate(zip(f1, same, strict=True))
    ]


FULL = rows("full_recompute", [1, 1, 1, 0], [1, 1, 1, 1])
BARE = rows("no_recompute", [0, 0, 1, 0], [0, 0, 1, 0])
PACKET = rows("kv_packet", [1, 0, 1, 0], [1, 0, 1, 0], "s=1")


def by_method(found):
    return {s["method"]: s for s in found}


def test_shares_gaps_and_splits_are_of_the_same_questions():
    found = by_method(summary.aggregate(FULL + PACKET + BARE))
    packet = found["kv_packet"]
    assert packet["setting"] == "s=1" and packet["num_samples"] == 4 and packet["num_sets"] == 2
    assert packet["f1"] == 0.5 and packet["f1_share"] == pytest.approx(0.5 / 0.75)
    assert packet["gap_closed"] == pytest.approx((0.5 - 0.25) / (0.75 - 0.25))
    assert packet["f1_difference"] == -0.25
    assert (packet["num_where_right"], packet["num_where_wrong"]) == (3, 1)
    assert packet["agree_where_right"] == pytest.approx(2 / 3)
    assert packet["agree_where_wrong"] == 0 and packet["kl_answer_where_wrong"] == 2
    full = found["full_recompute"]
    assert full["f1_share"] == full["gap_closed"] == 1 and full["f1_difference"] == 0
    # Settings of bare packets beside them are not what gaps are told from.
    smaller = [row | {"setting": "compress=knorm", "f1": 0.0} for row in BARE]
    beside = summary.aggregate(FULL + PACKET + BARE + smaller)
    assert by_method(beside)["kv_packet"]["gap_closed"] == packet["gap_closed"]


def test_examples_of_the_same_documents_are_one_set():
    f1 = [1, 1, 0, 0, 1, 1, 0, 0]
    plain = summary.aggregate(rows("kv_packet", f1, f1))[0]
    about = [row | {"documents": "ab"[i % 4 // 2]} for i, row in enumerate(rows("b", f1, f1))]
    same = summary.aggregate([row | {"method": "kv_packet"} for row in about])[0]
    assert (plain["num_sets"], same["num_sets"]) == (4, 2)
    assert plain["f1"] == same["f1"] and same["f1_low"] < plain["f1_low"] + 1e-9
    alone = summary.aggregate([row | {"documents": "a"} for row in rows("kv_packet", f1, f1)])[0]
    assert alone["num_sets"] == 1 and alone["f1_low"] is None


def test_what_is_in_doubt_is_answered_by_the_full_context():
    sure = (0.29, 0.31, 0.49, 0.9)
    known = [{"confidence": c, "elsewhere": False} for c in sure]
    packet = [row | more for row, more in zip(PACKET, known, strict=True)]
    found = by_method(summary.aggregate(FULL + packet + BARE))
    limits = {g["below"]: g for g in found["kv_packet"]["guarded"]}
    low, high = limits[0.3], limits[0.5]
    assert list(limits) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    # Only the second answer is wrong, and only the higher limit has it read again.
    assert (low["below"], low["reread"], low["f1"]) == (0.3, 0.25, 0.5)
    assert low["agree_where_right"] == pytest.approx(2 / 3)
    assert (high["below"], high["reread"], high["f1"], high["f1_share"]) == (0.5, 0.75, 0.75, 1)
    assert high["agree_where_right"] == 1 and high["agree"] == 0.75
    assert "guarded" not in found["full_recompute"] and "guarded" not in found["no_recompute"]
    text = io.StringIO()
    rich.console.Console(file=text, width=120).print(tables.guard_table(list(found.values())))
    lines = [
        line.split() for line in text.getvalue().splitlines() if " 0." in line or " 0 " in line
    ]
    assert lines[0] == "kv_packet:s=1 0 0% 0.500 0.667 0.50 0.67".split()
    assert lines[2] == "0.5 75% 0.750 1.000 0.75 1.00".split()
    assert tables.guard_table([found["no_recompute"]]) is None
    # The wrong one is sure of what stands in another document.
    sure = [row | {"confidence": 0.95, "elsewhere": i == 1} for i, row in enumerate(PACKET)]
    for limit in summary.aggregate(FULL + sure)[1]["guarded"]:
        assert (limit["reread"], limit["agree_where_right"]) == (0.25, 1)
    earlier = [row | {"confidence": 0.9} for row in PACKET]
    assert "guarded" not in summary.aggregate(FULL + earlier)[1]
    assert summary.unknown_doubts(FULL + earlier + sure) == 4


def test_the_difference_is_paired_and_sets_are_resampled():
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 2, 200).astype(float)  # sets differ much, methods by .25 in every set
    full = np.repeat(hard, 4)
    other = full.copy()
    other[::4] -= 1
    found = by_method(
        summary.aggregate(
            rows("full_recompute", full, np.ones(800), per_set=4)
            + rows("kv_packet", other, np.ones(800), per_set=4)
        )
    )
    packet = found["kv_packet"]
    assert packet["f1_difference_low"] == packet["f1_difference_high"] == -0.25
    width = packet["f1_high"] - packet["f1_low"]
    # Of 200 independent sets, not of 800 questions: twice as wide.
    assert width == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(200), rel=0.1)


def test_the_interval_of_the_share_is_that_of_the_ratio_of_sums():
    rng = np.random.default_rng(1)
    full = np.repeat(rng.uniform(0.2, 1, 60), 3)
    found = by_method(
        summary.aggregate(
            rows("full_recompute", full, np.ones(180), per_set=3)
            + rows("kv_packet", full * 0.8, np.ones(180), per_set=3)
            + rows("no_recompute", rng.uniform(0, 1, 180), np.ones(180), per_set=3)
        )
    )
    exact, noisy = found["kv_packet"], found["no_recompute"]
    # A fixed share of each question has no spread, however much questions differ.
    assert exact["f1_share_low"] == pytest.approx(0.8) == exact["f1_share_high"]
    assert noisy["f1_share_low"] < noisy["f1_share"] < noisy["f1_share_high"]
    wrong = rows("full_recompute", [0, 0, 0, 0], [1, 1, 1, 1])
    share = by_method(summary.aggregate(wrong + PACKET))["kv_packet"]
    assert share["f1_share"] is share["f1_share_low"] is share["f1_share_high"] is None


def test_packets_are_compared_with_bare_and_with_whole_ones():
    half = [row | {"setting": "compress=knorm", "f1": 0.0} for row in PACKET]
    whole = [row | {"setting": ""} for row in PACKET]
    found = summary.aggregate(FULL + whole + half + BARE)
    first, second = (s for s in found if s["method"] == "kv_packet")
    assert first["f1_to_bare"] == 0.25 and "f1_to_whole" not in first
    assert (second["f1_to_bare"], second["f1_to_whole"]) == (-0.25, -0.5)
    assert second["f1_to_whole_low"] == second["f1_to_whole_high"] == -0.5  # in both sets
    assert "f1_to_bare" not in by_method(found)["no_recompute"]
    text = io.StringIO()
    rich.console.Console(file=text, width=250).print(*tables.quality_tables(found))
    assert "-0.50 to -0.50" in text.getvalue() and "To whole:" in tables.quality_legend(found)
    assert "to bare (95 %)" in page_tables.scores(found).header
    assert summary.paired(summary.aggregate(FULL + whole)) == []
    # Not of the same questions.
    assert "f1_to_bare" not in by_method(summary.aggregate(FULL + whole + BARE[:2]))["kv_packet"]


def test_what_cannot_be_known_is_none():
    found = by_method(summary.aggregate(rows("kv_packet", [1, 0], [1, 0])))["kv_packet"]
    assert found["f1_low"] is found["f1_share"] is found["gap_closed"] is None
    assert "f1_difference" not in found


def test_what_only_some_rows_have_is_summed_over_those_and_shown_only_then():
    some = [row | {"gold_tokens": g} for row, g in zip(PACKET, (0.5, 1, None, 0), strict=True)]
    found = summary.aggregate(FULL + some)
    assert by_method(found)["kv_packet"]["gold_tokens"] == pytest.approx(0.5)
    assert "gold_tokens" not in by_method(found)["full_recompute"]
    text = io.StringIO()
    rich.console.Console(file=text, width=200).print(*tables.quality_tables(found))
    assert summary.extra(found) == ["gold_tokens"] and "gold tokens" in text.getvalue()
    assert "gold tokens: the share" in tables.quality_legend(found).lower()
    assert "gold tokens" in page_tables.scores(found).header
    for shown in (page_tables.scores(summary.aggregate(FULL)).header, tables.quality_legend([])):
        assert "gold" not in str(shown)


def test_kinds_of_questions_are_summed_apart_and_lost_answers_by_their_place():
    kinds, places = ["1_hop", "2_hop"] * 2, ["gold", "other", "nowhere", ""]

    def with_kinds(found):
        extra = zip(found, kinds, places, strict=True)
        return [row | {"kind": kind, "place": place} for row, kind, place in extra]

    found = by_method(summary.aggregate(with_kinds(FULL) + with_kinds(PACKET) + with_kinds(BARE)))
    packet = found["kv_packet"]
    assert packet["lost"] == {"other": 1} and found["no_recompute"]["lost"] == {
        "gold": 1,
        "other": 1,
    }
    assert {k: v["f1"] for k, v in packet["kinds"].items()} == {"1_hop": 1.0, "2_hop": 0.0}
    assert packet["kinds"]["2_hop"]["num_samples"] == 2
    assert packet["kinds"]["1_hop"]["f1_share"] == 1 and found["full_recompute"]["lost"] == {}
    assert "kinds" not in by_method(summary.aggregate(FULL))["full_recompute"]
