"""Sets of documents with questions, drawn from a file of them."""

import gzip
import json

import pytest

from kvpacket_jax import data
from kvpacket_jax.data.own import corpus

SPLITS = ("train", "validation", "test")


def record(i: int) -> dict:
    body = f"Boat {i} leaves from pier {1000 + i} and it carries {2000 + i} sacks of salt."
    text = f"Boat {i}\n{body} It is red, as all of them are."
    questions = [
        {"text": f"Where does boat {i} leave from?", "answers": [f"pier {1000 + i}"]},
        {"text": f"What colour is boat {i}?", "answers": ["red"]},
    ]
    return {"id": f"boat-{i}", "text": text, "questions": questions}


RECORDS = [record(i) for i in range(60)]


def write(path, records) -> str:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(r)}\n" for r in records)
    return str(path)


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "boats.jsonl.gz", RECORDS)


def test_sets_have_the_number_of_documents_and_questions_about_them(path):
    source = data.load("corpus", "train", path=path, num_documents=(2, 4), num_questions=6)
    examples = [source[i] for i in range(40)]
    assert {len(example.documents) for example in examples} == {2, 3, 4}
    for example in examples:
        assert len(set(example.documents)) == len(example.documents)
        kinds = [q.info["kind"] for q in example.questions]
        assert kinds == sorted(kinds, reverse=True) and len(kinds) <= 6
        assert kinds.count("written") == len(example.documents)  # every boat is red
        for question in example.questions:
            (at,) = question.info["documents"]
            places = [i for i, d in enumerate(example.documents) if question.answers[0] in d]
            assert places == [at]
            if question.form == "completion":
                assert f"{question.text} {question.answers[0]}" in example.documents[at]


def test_related_documents_are_of_one_kind(tmp_path):
    """Boats and bridges in one file: a set is of either, and without the option of both."""
    text = json.dumps([record(i) for i in range(100, 160)])
    bridges = json.loads(text.replace("Boat", "Bridge").replace("pier", "bank"))
    both = write(tmp_path / "both.jsonl", RECORDS + bridges)

    def kinds(**options):
        source = data.load("corpus", "train", path=both, num_documents=4, **options)
        return [len({d.split()[0] for d in source[i].documents}) for i in range(20)]

    assert kinds(related=True) == [1] * 20 and max(kinds()) == 2
    source = data.load("corpus", "train", path=both, num_documents=4, related=True)
    assert len({d for i in range(20) for d in source[i].documents}) > 25  # not always the same


def test_splits_share_no_document(path):
    sources = [data.load("corpus", s, path=path, num_documents=3) for s in SPLITS]
    texts = [{d for i in range(60) for d in source[i].documents} for source in sources]
    assert len(set.union(*texts)) == sum(map(len, texts))


def test_sets_to_test_on_share_no_document_while_there_are_others(path):
    source = data.load("corpus", "test", path=path, num_documents=(2, 3))  # 12 boats
    turns = [[source[4 * turn + i].documents for i in range(4)] for turn in range(3)]
    for sets in turns:
        drawn = [d for documents in sets for d in documents]
        assert len(set(drawn)) == len(drawn) >= 8
    assert len({len(documents) for sets in turns for documents in sets}) == 2
    assert turns[0] != turns[1] != turns[2]


def test_what_is_drawn_follows_from_seed_and_index_not_from_the_place(path, tmp_path):
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / "boats.jsonl", RECORDS)
    first = data.load("corpus", "train", path=path)
    assert first[3] == data.load("corpus", "train", path=other)[3] == first[3 - len(first)]
    assert first[3] != first[4] != data.load("corpus", "train", path=path, seed=1)[4]
    brief = data.load("corpus", "train", path=path, preamble="Be brief.", num_train=5)
    assert brief[3].documents == first[3].documents and brief[3].preamble == "Be brief."
    with pytest.raises(IndexError):
        brief[5]


def test_a_set_without_a_question_is_drawn_again(tmp_path):
    silent = [{"id": f"{i}", "text": f"Boat {i} is red.", "questions": []} for i in range(50)]
    path = write(tmp_path / "boats.jsonl", [*silent, *RECORDS[:10]])
    options = {"num_documents": 1, "document_words": (1, 50)}
    source = data.load("corpus", "train", path=path, **options)
    assert all(source[i].questions for i in range(30))
    path = write(tmp_path / "silent.jsonl", silent)
    with pytest.raises(ValueError, match="too few questions: none about 100 sets"):
        data.load("corpus", "train", path=path, **options)[0]


def test_bad_files_and_options_are_refused(path, tmp_path):
    with pytest.raises(ValueError, match="Give the file that launch.write_questions wrote"):
        data.load("corpus", "train")
    with pytest.raises(FileNotFoundError, match="no file"):
        data.load("corpus", "train", path=str(tmp_path / "none.jsonl"))
    with pytest.raises(TypeError, match="no option words; it has .*document_words"):
        data.load("corpus", "train", path=path, words=3)
    with pytest.raises(ValueError, match="num_documents=25: give a number, or .* from 1 to 24"):
        data.load("corpus", "train", path=path, num_documents=25)
    with pytest.raises(ValueError, match="corpus has no slices"):
        data.load("corpus", "test[:10%]", path=path)
    with pytest.raises(ValueError, match="test has 0 documents of .* fewer than the 5"):
        data.load("corpus", "test", path=path, document_words=(300, 400))


def test_bad_lines_are_named(tmp_path):
    bad = [
        RECORDS[0] | {"text": " "},
        RECORDS[0] | {"questions": "What?"},
        RECORDS[0] | {"questions": [{"text": "What?", "answers": []}]},
    ]
    path = write(tmp_path / "bad.jsonl", [*bad, RECORDS[0]])
    with pytest.raises(ValueError) as error:
        corpus.records(path)
    for part in (
        "line 1: text must be a text that is not empty",
        "line 2: questions must be a list",
        "line 3: a question must be",
    ):
        assert part in str(error.value)
    assert "line 4" not in str(error.value)
    path = write(tmp_path / "twice.jsonl", [RECORDS[0], RECORDS[1], RECORDS[0]])
    with pytest.raises(ValueError, match="1 lines with the id of another"):
        corpus.records(path)
