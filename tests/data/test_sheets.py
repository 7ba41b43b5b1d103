"""Sheets: what is asked stands once, on the line that the question names."""

import itertools
import re

import pytest

from kvpacket_jax.data.generated import SPLITS
from kvpacket_jax.data.synthetic import sheets

CONFIG = sheets.SheetsConfig(num_questions=40)
EXAMPLES = [sheets.generate("train", i, CONFIG) for i in range(60)]


def asked():
    return [(example, question) for example in EXAMPLES for question in example.questions]


def test_an_answer_stands_on_the_line_that_the_question_names():
    for example, question in asked():
        (place,) = question.info["documents"]
        (value,) = question.answers
        lines = [line for line in example.documents[place].split("\n") if value in line]
        names = [
            n for n in sheets.words.POOLS[sheets.words.SHEETS[question.info["kind"]].names]
            if any(line.lstrip("-•*| ").lower().startswith(n.lower()) for line in lines)
        ]  # fmt: skip
        assert any(name in question.text for name in names), (question, lines)


def test_an_answer_stands_once_in_the_documents():
    for example, question in asked():
        text = "\n".join(example.documents).lower()
        value = question.answers[0].lower()
        assert text.count(value) == 1, question
        # Without points, as it is scored.
        assert text.replace(".", "").count(value.replace(".", "")) == 1, question


def test_a_question_names_its_firm_and_no_other():
    for example, question in asked():
        (place,) = question.info["documents"]
        (surname,) = (n for n in sheets.firms("train") if re.search(rf"\b{n}\b", question.text))
        found = [
            i
            for i, d in enumerate(example.documents)
            if re.search(rf"\b{surname}\b", d.split("\n")[0], re.I)
        ]
        assert found == [place], question


def test_documents_have_the_words_that_are_asked_for():
    for words in (20, 40, 60):
        config = sheets.SheetsConfig(document_words=words)
        for i in range(20):
            example = sheets.generate("train", i, config)
            for document in example.documents:
                number = len(document.split())
                assert number <= words or document.count("\n") <= 2 * (sheets.MIN_LINES + 3)
                assert number > words - 20, document


def test_every_kind_is_drawn_and_times_rise():
    kinds = {q.info["kind"] for _, q in asked()}
    assert kinds == set(sheets.KINDS)
    only = sheets.SheetsConfig(kinds=("timetable",), num_questions=60)
    for i in range(10):
        example = sheets.generate("test", i, only)
        for place, document in enumerate(example.documents):
            times = {
                q.answers[0]: document.index(q.answers[0])
                for q in example.questions
                if q.info["documents"] == [place]
            }
            assert sorted(times) == sorted(times, key=times.get)
            assert len(times) >= sheets.MIN_LINES


def test_splits_share_neither_firms_nor_names_of_lines():
    for a, b in itertools.combinations(SPLITS, 2):
        assert not set(sheets.firms(a)) & set(sheets.firms(b))
        for name in sheets.words.POOLS:
            assert not set(sheets._pool(a, name)) & set(sheets._pool(b, name))
            assert len(sheets._pool(a, name)) >= sheets.MIN_LINES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("prizes",)}, "choose from prices, staff, hours"),
        ({"num_documents": 11}, "from 1 to 10"),
        ({"same_kind": 2}, "from 0 to 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sheets.SheetsConfig(**options)
