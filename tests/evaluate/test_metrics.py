"""Scores: SQuAD's rules, and the published code's counts where they agree with them."""

import json
import string

import pytest

from kvpacket_jax.evaluate import metrics
from tests.support.golden import GOLDEN

CASES = json.loads((GOLDEN / "text_cases.json").read_text())


@pytest.mark.parametrize("name", ["biography", "hotpot_qa", "niah"])
def test_counts_are_the_published(name):
    """Of what the published code cuts out of an answer, where no punctuation is left: there it
    counts, and SQuAD's rules drop it."""
    cut = [case[name] for case in CASES["scoring"]]
    plain = [case for case in cut if not set(string.punctuation) & set(case["pred"])]
    assert len(plain) > 3
    for case in plain:
        common, found, wanted = metrics.overlap(case["pred"], case["gold"])
        assert [common, found - common, wanted - common] == case["tp_fp_fn"], case
    if plain == cut:
        pairs = [(case["pred"], [case["gold"]]) for case in cut]
        expected = CASES["micro"][name][2]
        assert metrics.f1_micro(*zip(*pairs, strict=True)) == pytest.approx(expected)


def test_the_closest_of_several_answers_counts():
    assert metrics.f1("by Lake Ombrine", ["a pond", "Lake Ombrine"]) == pytest.approx(0.8)
    assert metrics.f1("", ["x"]) == 0


def test_case_punctuation_and_articles_do_not_count():
    assert metrics.exact_match("The  Lake, Ombrine.", ["lake ombrine"])
    assert not metrics.exact_match("By Lake Ombrine", ["lake ombrine"])


@pytest.mark.parametrize(
    ("answer", "gold", "squad", "hotpot_qa"),
    [
        ("Yes.", "yes", 1, 1),
        ("Yes, both are", "yes", 0.5, 0),
        ("no", "yes", 0, 0),
        ("No", "no man's land", 0.5, 0),
        ("the lake", "lake ombrine", 2 / 3, 2 / 3),
        ("", "yes", 0, 0),
    ],
)
def test_yes_and_no_are_scored_as_hotpot_qa_does(answer, gold, squad, hotpot_qa):
    assert metrics.f1(answer, [gold]) == pytest.approx(squad)
    assert metrics.f1_hotpot_qa(answer, [gold]) == pytest.approx(hotpot_qa)


@pytest.mark.parametrize(
    ("answer", "recall"),
    [("QPWZX then ABCDE", 1), ("qpwzx", 0.5), ("abcdefgh", 0.5), ("", 0), ("none of them", 0)],
)
def test_recall_of_a_lists_items_is_rulers(answer, recall):
    """As string_match_all of its code: in any order, in any case, within other words too."""
    assert metrics.string_recall(answer, ["ABCDE, QPWZX"]) == recall


def test_an_answer_contains_whole_words():
    assert metrics.contains("She works for the Indigo Systems.", ["Indigo Systems"])
    assert not metrics.contains("She works for Indigo.", ["Indigo Systems"])
    assert not metrics.contains("scarves", ["car"])
