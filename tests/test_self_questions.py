"""A model writes questions about documents; those that its own answer confirms are stored."""

import dataclasses
import json

import numpy as np
import pytest

import models
from kvpacket_jax import self_questions, teacher
from kvpacket_jax.data.own import corpus
from kvpacket_jax.self_questions import STARTS, Writer, confirmed, sensible
from launch.common import questions
from models.disk.files import append_line

FERRY = "The ferry to Aldmoor leaves at 9.15 from pier 4. It carries 12 cars."


class ChatTokenizer:
    """The byte tokenizer with a chat template: "<system|", and "|" before the reply."""

    has_chat_template = True

    def __init__(self, plain):
        self._plain, self.encode, self.stop_ids = plain, plain.encode, plain.encode("~")

    def decode(self, ids):
        return self._plain.decode([i for i in ids if i not in self.stop_ids])

    def chat_parts(self, system, thinking=False):
        return f"<{system}|", "|"


@pytest.fixture
def writer(byte_model):
    model = models.load(str(byte_model), "float32")
    model = dataclasses.replace(model, tokenizer=ChatTokenizer(model.tokenizer))
    return Writer(model, size=2, lengths=(400, 480), starts=48, row=120)


def scripted(writer, monkeypatch, replies: dict[str, str]) -> list[tuple[int, ...]]:
    """Lets the model say what `replies` has for the end of a row; returns each call's shapes."""
    tokenizer, shapes = writer.model.tokenizer, []

    def answer(module, params, contexts, _, rows, row_lengths, stops, new_tokens):
        shapes.append((*contexts.shape, *rows.shape))
        tokens = np.full((*rows.shape[:2], 200), tokenizer.stop_ids[0], np.int32)
        lengths = np.ones(rows.shape[:2], np.int32)
        for e, q in np.ndindex(*lengths.shape):
            row = tokenizer.decode(rows[e, q, : row_lengths[e, q]].tolist())
            said = next((r for end, r in replies.items() if row.endswith(end)), "~")
            ids = tokenizer.encode(said)
            tokens[e, q, : len(ids)], lengths[e, q] = ids, len(ids)
        return teacher.Answers(tokens, lengths, None, None)

    monkeypatch.setattr(self_questions, "_answer", answer)
    return shapes


def test_questions_are_stored_whose_answer_stands_in_the_document(writer, monkeypatch):
    replies = {
        "Question: When": " does the ferry to Aldmoor leave?",
        "Question: How many": " cars does the ferry carry?",
        "Question: Which": " pier does the ferry leave from?",
        "Question: Who": " is the captain of the ferry?",
        "Question: In which": " year was it built, and this one never ends",
        "does the ferry to Aldmoor leave?|Answer:": " 9.15.\n",
        "cars does the ferry carry?|Answer:": " 12~",
        "pier does the ferry leave from?|Answer:": " Pier 4~",
        "the captain of the ferry?|Answer:": " Jack Sparrow~",
    }
    shapes = scripted(writer, monkeypatch, replies)
    long = "A sentence that is longer than all programs " * 10
    texts = {"a": FERRY, "b": long, "c": FERRY + " It is red.", "d": FERRY}
    texts["e"] = FERRY + " It has a bar." * 50  # its beginning is asked about
    written = {w.id: w for w in writer.write(texts.items())}
    assert {name: w.text for name, w in written.items()} == texts
    assert written["a"].record() == {
        "id": "a",
        "text": FERRY,
        "questions": [
            {"text": "Which pier does the ferry leave from?", "answers": ["Pier 4"]},
            {"text": "How many cars does the ferry carry?", "answers": ["12"]},
            {"text": "When does the ferry to Aldmoor leave?", "answers": ["9.15"]},
        ],
    }
    assert all(written[name].questions == written["a"].questions for name in "cde")
    assert (written["a"].tried, written["b"].tried, written["b"].questions) == (8, 0, [])
    # One program for each pass and length.
    sizes = {(2, length, 2, len(STARTS), row) for length in (400, 480) for row in (48, 120)}
    assert set(shapes) == sizes


def test_what_is_asked_is_what_an_evaluation_asks(writer, monkeypatch):
    seen = []

    def answer(module, params, contexts, lengths, rows, row_lengths, stops, new_tokens):
        decode = writer.model.tokenizer.decode
        row = rows[0, 0, : row_lengths[0, 0]].tolist()
        seen.append(decode(contexts[0, : lengths[0]].tolist()) + decode(row))
        ids = writer.model.tokenizer.encode(" the pier of the ferry?")
        tokens = np.tile(np.array(ids, np.int32), (*rows.shape[:2], 1))
        return teacher.Answers(tokens, np.full(rows.shape[:2], len(ids)), None, None)

    monkeypatch.setattr(self_questions, "_answer", answer)
    list(writer.write([("a", FERRY)]))
    written, asked = seen
    assert FERRY in written and written.endswith("|Question: What is the name of")
    question = "Question: What is the name of the pier of the ferry?|Answer:"
    assert asked.startswith("<Answer the question from the documents")
    assert asked.endswith(f"Documents:\n\n{FERRY}\n\n{question}")


def test_a_random_model_writes_nothing_and_loses_no_document(writer):
    texts = {"a": FERRY, "b": FERRY * 2, "c": FERRY + "!"}
    written = list(writer.write(texts.items()))
    assert {w.id: w.text for w in written} == texts
    assert all(w.tried == len(STARTS) for w in written)


def test_logits_that_are_not_finite_are_no_questions(writer):
    params = dict(writer.model.params)
    params["final_norm"] = params["final_norm"] * np.nan
    broken = dataclasses.replace(writer.model, params=params)
    with pytest.raises(ValueError, match="logits of .* are not finite"):
        list(dataclasses.replace(writer, model=broken).write([("a", FERRY)]))


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("When does the ferry leave?", True),
        ("  When does\tthe ferry leave? I ask.", True),
        ("When does it?", False),
        ("When does the ferry leave", False),
        ("When does the\nferry leave?", False),
        ("When does the ferry in the text leave?", False),
        ("When does the following ferry leave?", False),
        ("What type of ferry is this?", False),
        ("Who is the author of the timetable?", True),
        ("Who does the author say is late?", False),
        (" ".join(["When"] * 31) + "?", False),
    ],
)
def test_questions_are_whole_and_clear_among_several_documents(said, right):
    assert bool(sensible([said])) == right


def test_no_question_is_stored_twice_nor_two_of_one_answer():
    assert sensible(["When does the ferry leave?"] * 2) == ["When does the ferry leave?"]
    kept = confirmed(FERRY, ["When does it go now?", "At what time is it?"], [" 9.15", " 9.15."])
    assert [q.text for q in kept] == ["When does it go now?"]


@pytest.mark.parametrize(
    ("question", "said", "right"),
    [
        ("Where does it leave from?", " PIER 4.", True),
        ("Where does it leave from?", " pier", True),
        ("Where does it leave from?", " pie", False),  # no whole word
        ("Does it leave from pier 4?", " pier 4", False),
        ("Where does it leave from?", "", False),
        ("Where does it leave from?", f" {FERRY}", False),
        ("How many piers are there?", " pier 4", False),
        ("How many decks does it have?", " 4", False),
        ("How many cars does it carry?", " 12 cars", True),
        ("How many hours does it take?", " 9.15 from pier 4", True),
    ],
)
def test_answers_are_short_and_stand_in_the_document(question, said, right):
    assert bool(confirmed(FERRY, [question], [said])) == right


def test_a_run_that_was_stopped_goes_on_after_its_last_whole_line(tmp_path):
    output = tmp_path / "new" / "questions.jsonl"
    assert self_questions.finished(output) == {}
    lines = [json.dumps({"id": name, "text": "x", "questions": []}) for name in "ab"]
    # Cut anywhere, or whole but for its end.
    record = json.dumps({"id": "c", "text": "x", "questions": []})
    for cut in (record[:1], record[:12], record[:-1], ""):
        output.write_text("\n".join(lines) + f"\n{cut}")
        assert self_questions.finished(output) == {"a": "x", "b": "x"}
        append_line(output, record)
        assert self_questions.finished(output) == {"a": "x", "b": "x", "c": "x"}
        assert len(corpus.records.__wrapped__(str(output))) == 3
    output.write_text("\n".join(lines))
    assert self_questions.finished(output) == {"a": "x", "b": "x"}
    assert output.read_text() == "\n".join(lines)


def test_a_file_that_is_none_of_ours_stays_as_it_is(tmp_path):
    output = tmp_path / "notes.txt"
    for content in (
        "One line of something else",
        "Two\nlines",
        '{"id": "a", "text": "x"}\n{"id": ',
    ):
        output.write_text(content)
        with pytest.raises(ValueError, match="line 1"):
            self_questions.finished(output)
        assert output.read_text() == content


def test_questions_about_a_text_that_has_changed_are_refused(tmp_path, capsys):
    source, output = tmp_path / "docs.jsonl", tmp_path / "questions.jsonl"
    texts = {"a": "One.", "b": "Two."}
    lines = [json.dumps({"id": k, "text": t}) for k, t in texts.items()]
    records = [json.dumps({"id": k, "text": t, "questions": []}) for k, t in texts.items()]
    source.write_text("\n".join(lines))
    output.write_text("\n".join(records) + "\n")
    questions.write(source, output, "no such model")  # nothing is left: none is loaded
    source.write_text(lines[0])
    questions.write(source, output, "no such model")
    assert "1 documents that are not in" in capsys.readouterr().out
    source.write_text(lines[0].replace("One", "Another"))
    with pytest.raises(ValueError, match="1 documents, 'a' the first"):
        questions.write(source, output, "no such model")
    with pytest.raises(ValueError, match="too few documents .*: give 20 or more"):
        questions.write(source, output, "no such model", least=20)
