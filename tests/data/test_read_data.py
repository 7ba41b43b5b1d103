"""Data sets of text that others wrote: Wikipedia's paragraphs, a user's own file."""

import collections
import json

import pytest

from kvpacket_jax import data
from kvpacket_jax.data.own import jsonl
from kvpacket_jax.data.published import wikipedia

CONFIG = wikipedia.WikipediaConfig()


def test_splits_of_wikipedia_share_no_paragraph():
    texts = [
        {p["text"] for record in wikipedia.records(split) for p in record["paragraphs"]}
        for split in ("train", "validation", "test")
    ]
    assert min(map(len, texts)) > 300
    assert len(set.union(*texts)) == sum(map(len, texts))


def test_wikipedia_has_the_number_and_length_of_documents_asked_for():
    for i in range(40):
        example = wikipedia.generate("train", i, CONFIG)
        texts = [d.split("\n", 1)[1] for d in example.documents]
        assert len(texts) == 5 == len(set(texts)) and len(example.questions) <= 12
        assert all(50 <= len(t.split()) <= 90 for t in texts)
    assert example == wikipedia.generate("train", 39, CONFIG)
    other = wikipedia.WikipediaConfig(seed=1)
    assert example != wikipedia.generate("train", 39, other)


def test_questions_of_wikipedia_name_the_paragraphs_they_need():
    gold = {
        (q["text"], p["title"], p["text"])
        for record in wikipedia.records("train")
        for q in record["questions"]
        for p in record["paragraphs"]
        if p["gold"]
    }
    asked = 0
    for i in range(20):
        example = wikipedia.generate("train", i, CONFIG)
        for question in example.questions:
            if question.info["kind"].endswith("_hop"):
                asked += 1
                needed = [example.documents[i].split("\n", 1) for i in question.info["documents"]]
                assert needed and all((question.text, *parts) in gold for parts in needed)
    assert asked > 20


def test_related_paragraphs_were_found_for_the_same_question():
    home = {
        f"{p['title']}\n{p['text']}": record["id"]
        for record in wikipedia.records("train")
        for p in record["paragraphs"]
    }

    def largest(related: bool) -> float:
        """How many documents of a set are of one record, at most; the mean of thirty sets."""
        config = wikipedia.WikipediaConfig(document_words=(35, 110), related=related)
        sets = [wikipedia.generate("train", i, config).documents for i in range(30)]
        assert all(len(set(documents)) == 5 for documents in sets)
        counts = [collections.Counter(map(home.get, d)).most_common(1)[0][1] for d in sets]
        return sum(counts) / len(counts)

    assert largest(related=True) > 4 > 2.5 > largest(related=False)


def test_what_completes_a_cut_sentence_stands_in_its_document():
    kinds = set()
    for i in range(60):
        example = wikipedia.generate("train", i, CONFIG)
        for question in example.questions:
            kinds.add(question.info["kind"])
            if question.info["kind"] == "cut":
                (at,) = question.info["documents"]
                text = " ".join(example.documents[at].split())
                assert f"{question.text} {question.answers[0]}" in text
            if question.info["kind"] == "about":
                (at,) = question.info["documents"]
                assert example.documents[at].split("\n")[0] in question.text
    assert {"cut", "about", "1_hop", "2_hop"} <= kinds


@pytest.mark.parametrize("notes", [False, True])
def test_own_documents_hold_their_answers(notes):
    examples = data.load("own_docs", "validation", notes=notes)
    assert len(examples) == 12 and len({example.id for example in examples}) == 12
    for example in examples:
        assert len(example.documents) == 5
        for question in example.questions:
            texts = [example.documents[i] for i in question.info["documents"]]
            found = [any(a in text for text in texts) for a in question.answers]
            assert any(found) or not notes, question
    with pytest.raises(ValueError, match="no split 'train'"):
        data.load("own_docs", "train", notes=notes)


def test_an_index_past_the_end_and_unknown_options_are_refused():
    source = data.load("wikipedia", "test", num_test=3)
    assert len(source) == 3 and source[-1] == source[2]
    with pytest.raises(IndexError):
        source[3]
    with pytest.raises(TypeError, match="no option words; it has .*document_words"):
        data.load("wikipedia", "test", words=3)
    with pytest.raises(ValueError, match="validation"):
        data.load("wikipedia", "dev")
    for name, options in (("wikipedia", {}), ("jsonl", {"path": "mine.jsonl"})):
        with pytest.raises(ValueError, match=f"{name} has no slices"):
            data.load(name, "test[:10%]", **options)
    with pytest.raises(ValueError, match="validation has . paragraphs of .*fewer than the 5"):
        data.load("wikipedia", "validation", document_words=(300, 400))


GOOD = {"documents": ["A ferry."], "question": "What?", "answers": ["A ferry", "ferry"]}


def write(path, *lines) -> str:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return str(path)


def test_own_questions_are_read_one_a_line(tmp_path):
    other = {"id": "b", "documents": ["A tram."], "question": "Which?"}
    path = write(tmp_path / "mine.jsonl", GOOD, "", GOOD | other)
    first, second = data.load("jsonl", "test", path=path)
    assert (first.id, second.id) == ("line-1", "b")
    assert first.documents == ("A ferry.",) and second.questions[0].text == "Which?"
    assert first.questions[0].answers == ("A ferry", "ferry")
    without = {key: value for key, value in GOOD.items() if key != "answers"}
    (third,) = data.load("jsonl", "test", path=write(tmp_path / "unanswered.jsonl", without))
    assert third.questions[0].answers == ()
    by_split = str(tmp_path / "{split}.jsonl")
    write(tmp_path / "test.jsonl", GOOD | {"id": "c"})
    assert [e.id for e in data.load("jsonl", "test", path=by_split)] == ["c"]


def test_questions_about_the_same_documents_are_one_example(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MOST", 2)
    swapped = {"documents": ["A tram.", "A ferry."]}
    lines = [GOOD | swapped | {"question": f"Is it {i}?"} for i in range(3)]
    path = write(tmp_path / "mine.jsonl", lines[0], GOOD | {"id": "one"}, *lines[1:])
    found = data.load("jsonl", "test", path=path)
    assert [(e.id, [q.info["id"] for q in e.questions]) for e in found] == [
        ("line-1", ["line-1", "line-3"]),
        ("line-4", ["line-4"]),
        ("one", ["one"]),
    ]
    assert [q.text for q in found[0].questions] == ["Is it 0?", "Is it 1?"]


def test_bad_lines_are_named_all_at_once(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        GOOD,
        "{",
        {"documents": ["x"]},
        GOOD | {"answers": []},
        GOOD | {"documents": ["x", 3]},
        [1],
    )
    with pytest.raises(ValueError) as error:
        data.load("jsonl", "test", path=path)
    message = str(error.value)
    for part in (
        "line 2: no JSON at character 2: Expecting",
        "line 3: question missing; it has documents",
        "line 4: answers must be a list",
        "line 5: documents must be a text that is not empty, found 3",
        "line 6: it is not an object but list",
    ):
        assert part in message
    assert "\nline 1:" not in message
    with pytest.raises(FileNotFoundError, match="no file"):
        data.load("jsonl", "test", path=str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="empty"):
        data.load("jsonl", "test", path=write(tmp_path / "empty.jsonl"))


def test_lines_end_where_json_lines_do_and_no_id_comes_twice(tmp_path):
    path = tmp_path / "mine.jsonl"
    separated = json.dumps(GOOD | {"question": "One\u2028or\x85two?"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + separated.encode() + b"\r\n" + json.dumps(GOOD).encode())
    (example,) = data.load("jsonl", "test", path=path)
    first, second = example.questions
    assert first.text == "One\u2028or\x85two?" and second.info["id"] == "line-2"
    line = json.dumps(GOOD | {"id": "a"}).encode()
    path.write_bytes(line + b"\n\n" + line + b'\n{"documents": ["\xff"]}\n')
    with pytest.raises(ValueError, match="line 3: the id a is line 1's already\nline 4: 'utf-8'"):
        data.load("jsonl", "test", path=path)
