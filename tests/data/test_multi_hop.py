"""HotpotQA and MuSiQue: official files, from a folder or downloaded."""

import functools
import hashlib
import http.server
import json
import threading

import pytest

from kvpacket_jax import data
from kvpacket_jax.data.published import hotpot_qa, wikipedia

PLACES = ("Aldmoor", "Brackwater", "Corrin", "Dunleigh", "Estwick")


def hotpot_record(i: int) -> dict:
    context = [[f"{p} {i}", [f"{p} {i} is a town.", f" It has {i} mills."]] for p in PLACES]
    return {
        "_id": f"h{i}",
        "question": f"How many mills has Corrin {i}?",
        "answer": str(i),
        "type": "bridge" if i % 2 else "comparison",
        "level": "hard",
        "supporting_facts": [[f"Corrin {i}", 1], [f"Aldmoor {i}", 0]],
        "context": context,
    }


def musique_record(i: int) -> dict:
    paragraphs = [
        {
            "idx": k,
            "title": p,
            "paragraph_text": f"{p} has {i} mills.",
            "is_supporting": k in (1, 4),
        }
        for k, p in enumerate(PLACES)
    ]
    return {
        "id": f"2hop__{i}_{i}",
        "question": "How many mills?",
        "answer": str(i),
        "answer_aliases": [f"{i} mills", str(i)],
        "answerable": True,
        "paragraphs": paragraphs,
        "question_decomposition": [
            {"question": f"Mills of Brackwater {i}?", "answer": "one", "paragraph_support_idx": 1},
            {"question": "Which town has #1 mills?", "answer": "x", "paragraph_support_idx": 4},
            {"question": "Estwick >> mills", "answer": "two", "paragraph_support_idx": 4},
            {"question": "What is Estwick?", "answer": "a town", "paragraph_support_idx": 4},
        ],
    }


@pytest.fixture
def folder(tmp_path):
    write = lambda name, text: (tmp_path / name).write_text(text)  # noqa: E731
    records = [hotpot_record(i) for i in range(20)]
    write("hotpot_train_v1.1.json", json.dumps(records))
    write("hotpot_dev_distractor_v1.json", json.dumps(records[:3], indent=1) + "\n")
    lines = [json.dumps(musique_record(i)) + "\n" for i in range(20)]
    write("musique_ans_v1.0_train.jsonl", "".join(lines))
    write("musique_ans_v1.0_dev.jsonl", "".join(lines[:3]))
    return tmp_path


@pytest.fixture
def load(folder, tmp_path):
    return functools.partial(data.load, data_dir=tmp_path / "stored", folder=str(folder))


@pytest.mark.parametrize("name", ["hotpot_qa", "musique"])
def test_splits_are_the_official_files_with_a_tenth_of_training_held_out(name, load):
    splits = {split: load(name, split) for split in ("train", "validation", "test")}
    assert [len(s) for s in splits.values()] == [18, 2, 3]
    ids = {split: {example.id for example in s} for split, s in splits.items()}
    assert not ids["train"] & ids["validation"]
    assert len({s.fingerprint for s in splits.values()}) == 3


def test_paragraphs_stand_under_their_titles_and_gold_ones_are_known(load):
    (question,) = (example := load("hotpot_qa", "test")[1]).questions
    assert example.documents[2] == "Corrin 1\nCorrin 1 is a town. It has 1 mills."
    assert (question.answers, question.info["documents"]) == (("1",), [0, 2])
    assert question.info["kind"] == "bridge"
    (question,) = load("musique", "test")[2].questions
    assert question.answers == ("2", "2 mills")
    assert (question.info["documents"], question.info["hops"]) == ([1, 4], 2)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 20])
def test_gold_paragraphs_stay_and_the_first_others_do(number, load):
    whole, few = (load("musique", "test", num_documents=n)[0] for n in (20, number))
    assert len(few.documents) == min(max(number, 2), 5)
    places = [whole.documents.index(document) for document in few.documents]
    assert places == sorted(places) and {1, 4} <= set(places)
    gold = [few.documents[i] for i in few.questions[0].info["documents"]]
    assert gold == [whole.documents[1], whole.documents[4]]
    others = [i for i in places if i not in (1, 4)]
    assert others == [0, 2, 3][: len(others)]
    for beside in (1, 3, 20):
        those = load("musique", "test", num_documents=number, num_distractors=beside)[0]
        assert len(those.documents) == 2 + min(beside, 3)


def test_single_hop_questions_that_stand_alone_are_asked_once_each(load, tmp_path):
    plain, asked = load("musique", "test"), load("musique", "test", single_hop=True)
    assert [len(e.questions) for e in plain] == [1, 1, 1] and plain[0].id == asked[0].id
    texts = [[q.text for q in e.questions[1:]] for e in asked]
    assert texts == [["Mills of Brackwater 0?", "What is Estwick?"]] + [
        [f"Mills of Brackwater {i}?"] for i in (1, 2)
    ]
    (tmp_path / "ids").write_text("2hop__2_2")  # what others have had is asked where they are not
    (alone,) = load("musique", "test", single_hop=True, ids=str(tmp_path / "ids"))
    assert [q.text for q in alone.questions[1:]] == ["Mills of Brackwater 2?", "What is Estwick?"]
    few = load("musique", "test", single_hop=True, num_documents=2)[0]
    for question, place in zip(few.questions[1:], (0, 1), strict=True):
        assert question.info == {"kind": "1_hop", "hops": 1, "documents": [place]}
    assert few.questions[1].answers == ("one",)
    assert few.questions[0] == load("musique", "test", num_documents=2)[0].questions[0]


def test_a_changed_file_is_read_anew(folder, load):
    before = load("musique", "test")
    record = musique_record(7) | {"question": "Which mills?"}
    (folder / "musique_ans_v1.0_dev.jsonl").write_text(json.dumps(record) + "\n")
    after = load("musique", "test")
    assert [e.questions[0].text for e in after] == ["Which mills?"] and len(before) == 3
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    ("name", "change", "names"),
    [
        ("hotpot_qa", lambda r: r.pop("context"), "record 3: it is no record of HotpotQA"),
        ("hotpot_qa", lambda r: r.update(answer=" "), "answer must be a text that is not empty"),
        ("hotpot_qa", lambda r: r.update(_id="h0"), "the id h0 comes twice"),
        ("musique", lambda r: r.update(answerable=False), "MuSiQue-Full's file"),
        ("musique", lambda r: r.update(paragraphs=[{}]), "it is no record of MuSiQue"),
        ("musique", lambda r: r.update(id="mills"), "it is no record of MuSiQue"),
        ("musique", lambda r: r["question_decomposition"][0].update(question=None), "question"),
    ],
)
def test_bad_records_are_named(name, change, names, folder, load):
    make = hotpot_record if name == "hotpot_qa" else musique_record
    records = [make(i) for i in range(4)]
    change(records[2])
    if name == "hotpot_qa":
        (folder / "hotpot_dev_distractor_v1.json").write_text(json.dumps(records))
    else:
        lines = "".join(json.dumps(r) + "\n" for r in records)
        (folder / "musique_ans_v1.0_dev.jsonl").write_text(lines)
    with pytest.raises(ValueError, match="record 3: ") as raised:
        load(name, "test")
    assert names in str(raised.value)


@pytest.mark.parametrize("text", ["", "{}", "[{}", '[{"_id": "h0"}, {"_id"'])
def test_a_file_that_is_cut_short_is_refused(text, folder, load):
    (folder / "hotpot_dev_distractor_v1.json").write_text(text)
    with pytest.raises(ValueError, match=r"hotpot_dev_distractor_v1\.json"):
        load("hotpot_qa", "test")


def test_long_files_are_read_in_parts(folder, load, monkeypatch):
    whole = list(load("hotpot_qa", "train"))
    monkeypatch.setattr(hotpot_qa, "BLOCK", 7)
    assert [e.id for e in hotpot_qa.read(folder / "hotpot_train_v1.1.json")][:3] == [
        "h0",
        "h1",
        "h2",
    ]
    assert len(list(hotpot_qa.read(folder / "hotpot_train_v1.1.json"))) == 20 == len(whole) + 2


def test_missing_files_are_named(folder, load, tmp_path):
    with pytest.raises(FileNotFoundError, match="cannot be downloaded by a program"):
        data.load("musique", "test", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"\*dev_fullwiki\*\.json"):
        load("hotpot_qa", "test", setting="fullwiki")
    (folder / "my_ans_train.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match=r"has musique_ans_v1\.0_train\.jsonl, my_ans_tr"):
        load("musique", "train")


def test_an_archives_other_files_are_passed_over(folder, load):
    own = list(load("musique", "test"))
    (folder / "musique_full_v1.0_dev.jsonl").write_text("")
    assert list(load("musique", "test")) == own
    (folder / "musique_ans_v1.0_dev.jsonl").rename(folder / "my_dev.jsonl")
    (folder / "musique_full_v1.0_dev.jsonl").unlink()
    assert list(load("musique", "test")) == own


def test_what_adapters_learn_from_is_not_measured_on(folder, load):
    learnt = sorted(wikipedia.hotpot_qa_ids())
    records = [hotpot_record(i) | {"_id": learnt[i]} for i in range(3)]
    records += [hotpot_record(i) for i in range(3, 6)]
    paragraph = wikipedia.records("train")[7]["paragraphs"][0]
    known = [paragraph["title"], [paragraph["text"]]]
    records[3]["context"][0] = known  # which that question does not need
    records[4]["context"][2] = known
    records[4]["supporting_facts"][0][0] = known[0]
    (folder / "hotpot_dev_distractor_v1.json").write_text(json.dumps(records))
    assert len(learnt) == 576 and [e.id for e in load("hotpot_qa", "test")] == ["h3", "h5"]
    # Nor are adapters chosen by it; they may be trained on it.
    (folder / "hotpot_train_v1.1.json").write_text(json.dumps(records[:1] * 9 + records[5:]))
    with pytest.raises(ValueError, match="record 2: the id .* comes twice\nrecord 3: "):
        load("hotpot_qa", "train")
    many = [records[0] | {"_id": f"other{i}"} for i in range(9)] + records[:1]
    (folder / "hotpot_train_v1.1.json").write_text(json.dumps(many))
    assert len(load("hotpot_qa", "train")) == 9
    with pytest.raises(ValueError, match="no records for the split validation: .* learned from"):
        load("hotpot_qa", "validation")


def test_records_are_chosen_by_a_file_of_ids(folder, load):
    file = folder / "ids.txt"
    file.write_text("h2\nh0\n")
    few = load("hotpot_qa", "test", ids=str(file))
    assert [e.id for e in few] == ["h2", "h0"] and few[0] == load("hotpot_qa", "test")[2]
    assert few.fingerprint != load("hotpot_qa", "test").fingerprint
    same = folder / "same.txt"
    same.write_text("h2 h0")
    assert load("hotpot_qa", "test", ids=str(same)).fingerprint == few.fingerprint
    for text, wrong in (
        ("h0\nh9\nh8\n", "test lacks 2 of 3 ids, h9 the first"),
        ("h0\nh0", "has the id h0 twice"),
        ("\n", "has no ids"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=wrong):
            load("hotpot_qa", "test", ids=str(file))
    with pytest.raises(FileNotFoundError, match="no file of ids"):
        load("hotpot_qa", "test", ids="nowhere.txt")


def test_questions_whose_gold_paragraphs_were_not_found_are_a_kind_of_their_own(folder, load):
    records = [hotpot_record(i) for i in range(2)]
    del records[1]["context"][2]
    (folder / "hotpot_dev_fullwiki_v1.json").write_text(json.dumps(records))
    found = [e.questions[0].info for e in load("hotpot_qa", "test", setting="fullwiki")]
    assert [i["kind"] for i in found] == ["comparison", "bridge, incomplete"]
    assert [i["documents"] for i in found] == [[0, 2], [0]]


@pytest.fixture
def served(folder, monkeypatch):
    """hotpot_qa's development file as a server of this machine has it."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        file = folder / "hotpot_dev_distractor_v1.json"
        official = official_of(file, f"http://127.0.0.1:{server.server_port}/{file.name}")
        monkeypatch.setitem(hotpot_qa.DEV, "distractor", official)
        yield file
        server.shutdown()


def official_of(file, url):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return hotpot_qa.DEV["distractor"]._replace(url=url, sha256=digest)


def test_official_files_are_downloaded_and_verified(served, folder, tmp_path, monkeypatch):
    downloaded = data.load("hotpot_qa", "test", data_dir=tmp_path / "one")
    own = data.load("hotpot_qa", "test", data_dir=tmp_path / "two", folder=str(folder))
    assert list(downloaded) == list(own) and downloaded.fingerprint == own.fingerprint
    served.write_text(served.read_text() + " ")
    with pytest.raises(ValueError, match="is not the file it was"):
        data.load("hotpot_qa", "test", data_dir=tmp_path / "three")
    served.unlink()
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        data.load("hotpot_qa", "test", data_dir=tmp_path / "four")
