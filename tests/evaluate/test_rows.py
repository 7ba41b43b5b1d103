"""Rows of answers: where their words stand, and what they are held to."""

import dataclasses

import numpy as np
import pytest

from kvpacket_jax.data import Example, Question
from kvpacket_jax.evaluate import rows
from kvpacket_jax.evaluate.answers import Answer


@pytest.mark.parametrize(
    ("said", "gold", "place"),
    [
        ("pier 3", [0], "gold"),
        ("Pier 3", [0, 1], "gold"),
        ("The pier 3.", [0], "gold"),  # as scores compare texts
        ("noon", [0], "other"),
        ("pier", [1], "other"),
        ("pie", [0], "nowhere"),
        ("", [0], "unanswered"),
        ("", None, "unanswered"),
        ("Yes.", [0], "closed"),
        ("no", None, "closed"),
        ("pier 3", None, ""),
    ],
)
def test_an_answers_place_is_the_document_that_has_its_words(said, gold, place):
    info = {} if gold is None else {"documents": gold}
    question = Question("When?", ("noon",), info=info)
    example = Example("e", ("From pier 3.", "At noon."), (question,))
    given = [Answer(said, False, np.zeros(1))]
    (row,) = rows.answer_rows("kv_packet", example, given, given)
    # "pier" stands in the first document, which the question does not need.
    assert row["place"] == place
    closed = dataclasses.replace(question, answers=("yes",))
    (row,) = rows.answer_rows(
        "kv_packet", dataclasses.replace(example, questions=(closed,)), given, given
    )
    assert row["place"] == ("closed" if said else "unanswered")


def test_a_row_says_which_documents_and_which_line_it_is_about():
    given = [Answer("12", False, np.zeros(1))]
    question = Question("Which?", ("12",), info={"id": "line-7"})
    (row,) = rows.answer_rows("kv_packet", Example("e", ("a", "b"), (question,)), given, given)
    (turned,) = rows.answer_rows("kv_packet", Example("f", ("b", "a"), (question,)), given, given)
    (other,) = rows.answer_rows("kv_packet", Example("g", ("b", "c"), (question,)), given, given)
    assert row["id"] == "line-7" and row["documents"] == turned["documents"] != other["documents"]


@pytest.mark.parametrize(
    ("dataset", "figure"),
    [("ruler", {"string_recall": 0.5}), ("hotpot_qa", {"f1_hotpot_qa": 2 / 3}), ("musique", {})],
)
def test_a_data_set_whose_authors_score_otherwise_has_their_figure_too(dataset, figure):
    given = [Answer("12", False, np.zeros(1))]
    example = Example("e", ("12 and 34.",), (Question("Which?", ("12, 34",)),))
    (plain,) = rows.answer_rows("kv_packet", example, given, given)
    (row,) = rows.answer_rows("kv_packet", example, given, given, dataset)
    assert row == plain | figure


@pytest.mark.parametrize(
    ("said", "right"), [("34, 12", True), ("They are 12 and 34.", True), ("12", False)]
)
def test_a_list_is_right_where_all_its_items_are_said(said, right):
    question = Question("Which?", ("12, 34",), info={"documents": [0]})
    example, given = Example("e", ("12 and 34.",), (question,)), [Answer(said, False, np.zeros(1))]
    (row,) = rows.answer_rows("kv_packet", example, given, given, "ruler")
    assert (row["exact_match"], row["place"]) == (right, "")  # a list stands nowhere as a whole
    (row,) = rows.answer_rows("kv_packet", example, given, given, "musique")
    assert not row["exact_match"] and row["place"] in ("gold", "nowhere")


def test_without_a_right_answer_the_full_contexts_is_right():
    said, other = (Answer(text, False, np.zeros(1)) for text in ("noon", "at noon"))
    questions = (Question("When?", ()), Question("Where?", ("noon", "here")))
    example = Example("e", ("At noon.",), questions)
    first, second = rows.answer_rows("kv_packet", example, [other, said], [said, other])
    assert first["expected"] == ["noon"] and 0 < first["f1"] < 1
    assert second["expected"] == ["noon", "here"] and second["f1"] == 1
