"""The one reader of JSON lines, with one set of checks for documents, questions and examples."""

import gzip
import json

import pytest

from kvpacket_jax import data
from kvpacket_jax.data import json_lines
from kvpacket_jax.data.own.corpus import records
from kvpacket_jax.serve import corpus

NESTED = "[" * 200_000 + "]" * 200_000
GOOD = {"id": "one", "text": "It is red.", "documents": ["It is red."], "question": "What is it?"}
GOOD |= {"answers": ["red"], "questions": []}

BAD = {
    "nested": (GOOD | {"id": "x"}, "line 2: it is nested too deeply"),
    "half": (GOOD | {"id": "x", "documents": ["\ud83d"], "text": "\ud83d"}, "half a surrogate"),
    "null": (GOOD | {"id": None}, "line 2: id must be a text that is not empty, found None"),
    "empty": (GOOD | {"id": " "}, "line 2: id must be a text that is not empty"),
    "number": (GOOD | {"id": 1.5}, "line 2: id must be a text .* found 1.5"),
    "padded": (GOOD | {"id": " lead"}, "line 2: the id ' lead' begins or ends with a blank"),
    "half id": (GOOD | {"id": "a\udc00"}, "line 2: id has half a surrogate pair"),
}


def readers(path) -> dict:
    return {
        "documents": lambda: corpus.read_file(path),
        "examples": lambda: data.load("jsonl", "test", path=str(path)),
        "corpus": lambda: records(str(path)),
    }


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("reader", readers(None))
def test_a_bad_line_is_named_by_each_reader(tmp_path, reader, kind):
    record, message = BAD[kind]
    line = json.dumps(record)
    if kind == "nested":
        line = line[:-1] + f', "meta": {NESTED}}}'
    path = tmp_path / "lines.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        readers(path)[reader]()


def test_a_bad_line_may_be_left_out(tmp_path):
    path = tmp_path / "docs.jsonl"
    bad = ['{"id": "deep", "text": "x", "meta": ' + NESTED + "}", json.dumps(BAD["half"][0])]
    path.write_text("\n".join([json.dumps(GOOD), *bad, json.dumps(GOOD | {"id": 2})]))
    said = []
    assert [d.id for d in corpus.read_file(path, said.append)] == ["one", "2"]
    assert len(said) == 2 and "line 2" in said[0] and "line 3" in said[1]


def test_an_id_given_from_python_is_one_that_a_flag_can_give():
    with pytest.raises(ValueError, match="begins or ends with a blank"):
        corpus.from_mapping({"trail ": "It is red."})


def test_a_compressed_file_that_is_cut_short_is_named(tmp_path):
    path = tmp_path / "docs.jsonl.gz"
    whole = gzip.compress(json.dumps(GOOD).encode() + b"\n")
    for bad in (whole[:-4], whole[:20], b"not compressed", whole[:15] + b"\xff" * 9 + whole[24:]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"docs\.jsonl\.gz"):
            corpus.read_file(path)


def test_a_line_without_end_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE", 100)
    path = tmp_path / "docs.jsonl"
    path.write_text("x" * 1000)
    with pytest.raises(ValueError, match="line 1: over 100 bytes"):
        corpus.read_file(path)
