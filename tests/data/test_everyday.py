"""Everyday documents to train on: folders, splits, and nothing of what is measured on."""

import re

import pytest

from kvpacket_jax import data
from kvpacket_jax.data import demo, passages
from kvpacket_jax.data.own import everyday

SPLITS = ("train", "validation", "test")


def folder_of(split: str) -> dict[str, str]:
    """The folder of each text."""
    return {
        record["text"]: record["id"].rpartition("/")[0]
        for folder in everyday.folders(split)
        for record in folder
    }


def test_no_folder_or_text_is_in_two_splits():
    texts = [folder_of(split) for split in SPLITS]
    names = [set(found.values()) for found in texts]
    for found in (texts, names):
        assert sum(map(len, found)) == len(set().union(*found)) > 50
    assert {len(folder) for split in SPLITS for folder in everyday.folders(split)} == {5}


def test_answers_stand_in_their_documents():
    for folder in (f for split in SPLITS for f in everyday.folders(split)):
        for record in folder:
            for question in record["questions"]:
                assert passages.stands_in(question["answers"][0], record["text"]), question


def test_sets_are_of_a_folder_and_share_no_document():
    folders = folder_of("validation")
    number = len(set(folders.values()))
    of_four = number + number // 4  # a set of what is left of four folders
    source = data.load("everyday", "validation", num_documents=4, num_questions=9)
    sets = [source[i] for i in range(of_four)]
    documents = [d for example in sets for d in example.documents]
    assert len(documents) == len(set(documents)) == 4 * of_four
    spread = [len({folders[d] for d in example.documents}) for example in sets]
    assert spread.count(1) == number and spread.count(4) == of_four - number
    for example in sets:
        assert len(example.questions) == 9
        for question in example.questions:
            (at,) = question.info["documents"]
            places = [
                i
                for i, text in enumerate(example.documents)
                if passages.stands_in(question.answers[0], text)
            ]
            assert places == [at]
    later = [source[of_four + i] for i in range(of_four)]  # dealt anew, all of them again
    assert len({d for example in later for d in example.documents}) == 4 * of_four
    assert [e.documents for e in sets] != [e.documents for e in later]


def test_numbers_and_lengths_are_as_asked_for():
    options = dict(num_documents=(2, 4), document_words=(100, 200))
    source = data.load("everyday", "train", **options)
    sets, again = [source[i] for i in range(30)], everyday.source("train", "", **options)
    assert {len(example.documents) for example in sets} == {2, 3, 4}
    assert all(100 <= len(d.split()) <= 200 for example in sets for d in example.documents)
    assert sets == [again[i] for i in range(30)]
    with pytest.raises(ValueError, match="everyday: test has 0 documents of"):
        data.load("everyday", "test", document_words=(1, 2))


def test_notes_are_lines_of_the_documents_that_alone_have_the_answer():
    options = dict(notes=True, document_words=(8, 16), num_documents=10, num_questions=9)
    source, texts = data.load("everyday", "train", **options), list(folder_of("train"))
    for example in (source[i] for i in range(10)):
        whole = [next(text for text in texts if note in text) for note in example.documents]
        assert not any("\n" in note for note in example.documents)
        for question in example.questions:
            if question.form == "question":
                (at,) = question.info["documents"]
                assert passages.stands_in(question.answers[0], example.documents[at])
                assert passages.count(question.answers[0], whole[at]) == 1


def test_nothing_of_what_is_measured_on_is_trained_on():
    """No eight words in a row of own_docs, own_notes or the demo."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    measured = [
        text
        for source in (
            data.load("own_docs", "test"),
            data.load("own_docs", "test", notes=True),
            [demo.example()],
        )
        for example in source
        for text in (*example.documents, *(q.text for q in example.questions))
    ]
    trained = [
        text
        for split in SPLITS
        for folder in everyday.folders(split)
        for record in folder
        for text in (record["text"], *(q["text"] for q in record["questions"]))
    ]
    shared = set().union(*map(runs, measured)) & set().union(*map(runs, trained))
    assert not shared
