"""What methods picked of the documents that a question needs."""

import numpy as np
import pytest

from kvpacket_jax.evaluate.selection import picked


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        # A preamble of 2 tokens, documents of 2, 4 and 2; slots from 10 on are the query's.
        ({"selected": [0, 2, 5, 6, 10, 40]}, (3 / 6, 3 / 8, 1.0)),
        ({"selected": [8, 9]}, (0, 2 / 8, 0.0)),
        ({"top": np.array([3, 3, -1, 0, 0, -1, -1, -1, 2, 2, 2, 2])}, (2 / 6, 4 / 8, 0.5)),
        # In the order 2, 0, 1: 2 and 3 are the last document's now, 4 and 5 the first one's.
        ({"selected": [2, 4, 5], "order": np.array([2, 0, 1, 3])}, (2 / 6, 3 / 8, 0.5)),
    ],
)
def test_recall_of_what_a_question_needs_is_counted_by_tokens_and_by_documents(info, expected):
    assert picked(info, 2, [2, 4, 2], [0, 1]) == pytest.approx(expected)


def test_no_recall_is_given_where_nothing_is_picked_or_needed():
    assert picked({}, 2, [2, 4], [0]) is None
    # niah names a document once for each number in it.
    once, twice = (picked({"selected": [4, 5]}, 2, [2, 4], gold) for gold in ([1], [1, 1]))
    assert once == twice and once.gold_documents == 1
    assert picked({"selected": [2]}, 2, [2, 4], None) is picked({"selected": [2]}, 2, [2], [])
