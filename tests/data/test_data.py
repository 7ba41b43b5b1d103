"""The generated data sets, their splits and seeds, how they are stored and read."""

import collections
import hashlib
import itertools
import json
import re

import pytest

from kvpacket_jax import data
from kvpacket_jax.data import generated
from kvpacket_jax.data.examples import from_record, to_record
from kvpacket_jax.data.mixture import mixture, pipeline
from kvpacket_jax.data.synthetic import biography, biography_words, niah, prose, ruler, sheets

BIOGRAPHY = biography.BiographyConfig()
NIAH = niah.NiahConfig()
SETS = {
    "biography": (biography.generate, BIOGRAPHY),
    "niah": (niah.generate, NIAH),
    "ruler": (ruler.generate, ruler.RulerConfig()),
    "sheets": (sheets.generate, sheets.SheetsConfig()),
}
SMALL = {"num_train": 12, "num_validation": 3, "num_test": 4}

# SHA-256 of the first three examples of each split. If these change on purpose, raise the data
# set's VERSION too, or users go on reading what an older version wrote.
FROZEN = {
    (
        "biography",
        "train",
    ): "ff73e97c5389be3822a0e1612e5d3c9a7a85fbe598aea7c3a828ae87b97734d6",
    (
        "biography",
        "test",
    ): "02c59d08919559dee6a97c2193bf32db0b22e65acc876759e9b586dcd21511e8",
    (
        "niah",
        "train",
    ): "41e51deb0accf107b7632e9b4c2c7ef9497e5d959686e45674dce50a62332cd1",
    (
        "niah",
        "test",
    ): "5264887470e74b921a951edcfa22029bd2d1fa0e3a54fb0a595c65db7d5fa34c",
    (
        "sheets",
        "train",
    ): "284a27ccea77a06d7b15c83b179370013e303a28619157ddcea2a1f40752bfbb",
    (
        "sheets",
        "test",
    ): "4d7b9473f6c5d3d6f14ca6fb3192408aaee407375961ac1d5ba196d5d2ff406b",
}


def sample(name, split, number=60, **options):
    generate, config = SETS[name]
    config = type(config)(**options) if options else config
    return [generate(split, i, config) for i in range(number)]


def disjoint(sets) -> bool:
    return len(set.union(*map(set, sets))) == sum(len(set(s)) for s in sets)


@pytest.mark.parametrize(("name", "split"), FROZEN)
def test_examples_never_change_within_a_version(name, split):
    records = [to_record(e) for e in sample(name, split, 3)]
    found = hashlib.sha256(json.dumps(records).encode()).hexdigest()
    assert found == FROZEN[name, split], f"{name}/{split} now gives {found}"


@pytest.mark.parametrize("name", SETS)
def test_examples_depend_on_seed_split_index_and_not_on_sizes_or_preamble(name):
    (first,) = sample(name, "train", 1, preamble="Be brief.", num_train=7)
    assert first.preamble == "Be brief."
    assert first.documents == sample(name, "train", 1)[0].documents
    drawn = [
        *(e.documents for e in sample(name, "train", 3)),
        *(e.documents for e in sample(name, "test", 3)),
        *(e.documents for e in sample(name, "train", 3, seed=1)),
    ]
    assert len(set(drawn)) == 9


def test_splits_share_no_person_and_no_fact():
    assert disjoint([biography.surnames(s) for s in generated.SPLITS])
    for attribute, pool in biography_words.VALUES.items():
        parts = [biography.values(s, attribute) for s in generated.SPLITS]
        assert disjoint(parts)
        assert set().union(*parts) == set(pool())
    answers = [
        {a for e in sample("biography", s) for q in e.questions for a in q.answers}
        for s in generated.SPLITS
    ]
    assert disjoint(answers)


def test_splits_share_no_key_word_and_no_number():
    for i in (0, 1):
        assert disjoint([niah.key_words(s)[i] for s in generated.SPLITS])
    texts = {
        s: " ".join(d for e in sample("niah", s) for d in e.documents) for s in generated.SPLITS
    }
    for split, text in texts.items():
        numbers = re.findall(r"\d+", text)
        assert numbers and all(niah.split_of_value(int(n)) == split for n in numbers)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("biography", {}),
        ("biography", {"num_documents": 20}),
        ("biography", {"document_words": biography.SHORT_DOCUMENT}),
        ("biography", {"shared_names": True, "two_hop": True}),
        ("biography", {"one_fact": True, "document_words": (6, 20)}),
        ("niah", {}),
        ("niah", {"num_tokens": 4096, "num_chunks": (2, 16)}),
    ],
)
def test_answers_stand_in_exactly_the_named_documents(name, options):
    for example in sample(name, "test", **options):
        assert example.questions
        for question in example.questions:
            (answer,) = question.answers
            parts = answer.split(", ") if question.info["kind"] == "multi_value" else [answer]
            # In the order in which they stand in the text.
            places = [
                (i, d.index(p)) for p in parts for i, d in enumerate(example.documents) if p in d
            ]
            assert places == sorted(places)
            assert [i for i, _ in places] == question.info["documents"]


def test_questions_name_a_person_of_the_wanted_document_only():
    for example in sample("biography", "validation"):
        for question in example.questions:
            names = [
                i
                for i, d in enumerate(example.documents)
                if any(n in question.text for n in re.findall(r"[A-Z]\w+ [A-Z]\w+", d))
            ]
            assert names == question.info["documents"]


def test_people_who_share_names_are_told_apart_by_both():
    for example in sample("biography", "train", 20, shared_names=True, num_documents=(2, 20)):
        names = [re.findall(r"[A-Z]\w+ [A-Z]\w+", d) for d in example.documents]
        people = [collections.Counter(n).most_common(1)[0][0] for n in names]
        assert len(set(people)) == len(people)
        if len(people) > 3:
            parts = collections.Counter(part for p in people for part in p.split())
            assert parts.most_common(1)[0][1] > 1


def test_a_question_of_two_hops_tells_of_its_person_by_another_fact():
    questions = [
        (e, q) for e in sample("biography", "train", 20, two_hop=True) for q in e.questions
    ]
    hops = [(e, q) for e, q in questions if q.info.get("hops") == 2]
    assert 0.35 * len(questions) < len(hops) < 0.65 * len(questions)
    for example, question in hops:
        (i,) = question.info["documents"]
        facts = [v for values in biography_words.VALUES.values() for v in values()]
        told = max((v for v in facts if v in question.text), key=len)
        holding = [j for j, d in enumerate(example.documents) if told in d]
        assert holding == [i] and told not in question.answers


def test_a_note_tells_the_one_fact_that_is_asked():
    options = dict(one_fact=True, document_words=(6, 20), num_documents=8)
    for example in sample("biography", "train", 20, **options):
        assert len(example.questions) == len(example.documents) == 8
        assert max(len(document.split()) for document in example.documents) <= 20
    with pytest.raises(ValueError, match="one_fact tells one"):
        sample("biography", "train", 1, one_fact=True, two_hop=True)


def test_every_fact_names_its_person_in_full():
    # With pronouns a small model loses who "she" was, in the full context too.
    for example in sample("biography", "train", 20):
        for question in example.questions:
            (document,) = (example.documents[i] for i in question.info["documents"])
            (fact,) = (s for s in re.split(r"(?<=\.) ", document) if question.answers[0] in s)
            assert any(n in fact for n in re.findall(r"[A-Z]\w+ [A-Z]\w+", question.text)), fact


@pytest.mark.parametrize(
    ("name", "options", "number"),
    [("biography", {"num_documents": 5}, 5), ("niah", {"kinds": "multi_key"}, 8)],
)
def test_wanted_document_is_anywhere(name, options, number):
    examples = sample(name, "train", 250, **options)
    places = collections.Counter(q.info["documents"][0] for e in examples for q in e.questions)
    mean = sum(places.values()) / number
    assert set(places) == set(range(number))
    assert all(0.8 * mean < n < 1.2 * mean for n in places.values()), places


def test_both_forms_and_all_attributes_are_asked():
    questions = [q for e in sample("biography", "train") for q in e.questions]
    kinds = collections.Counter((q.form, q.info["kind"]) for q in questions)
    assert set(kinds) == {(f, a) for f in data.FORMS for a in biography_words.VALUES}
    (only,) = {q.form for e in sample("niah", "train", forms="question") for q in e.questions}
    assert only == "question"


def test_wordings_are_complete():
    attributes = set(biography_words.VALUES)
    assert set(biography_words.PHRASINGS) == attributes
    assert all(set(biography_words.ASKED[form]) == attributes for form in data.FORMS)
    for wordings in biography_words.PHRASINGS.values():
        assert all("{v}" in w or "{a}" in w for w in wordings)


@pytest.mark.parametrize(
    ("words", "low", "high"),
    [
        (biography.SHORT_DOCUMENT, 32, 40),
        (biography.DOCUMENT, 50, 80),
        (biography.LONG_DOCUMENT, 90, 120),
    ],
)
def test_biographies_have_the_length_asked_for(words, low, high):
    lengths = [
        len(d.split())
        for e in sample("biography", "test", document_words=words)
        for d in e.documents
    ]
    assert low <= min(lengths) and max(lengths) <= high


@pytest.mark.parametrize("num_tokens", [512, 2048, 8192])
def test_niah_has_the_length_and_chunks_asked_for(num_tokens):
    for example in sample("niah", "test", 8, num_tokens=num_tokens, num_chunks=8):
        text = " ".join(example.documents)
        needles = text.count("special magic number")
        words = len(text.split()) - 8 * needles
        tokens = words * niah.TOKENS_PER_WORD + niah.NEEDLE_TOKENS * needles
        assert len(example.documents) == 8
        assert abs(tokens - num_tokens) < 0.12 * num_tokens


def test_niah_prose_repeats_nothing():
    for example in sample("niah", "train", 4, num_tokens=8192):
        sentences = re.split(r"(?<=\.) ", " ".join(example.documents))
        assert len(sentences) > 300
        assert len(set(sentences)) == len(sentences)
    assert not any(c.isdigit() for c in str(prose._CHOICES) + str(prose._PATTERNS))


def test_niah_kinds():
    for example in sample("niah", "train", kinds="single"):
        assert len(example.questions) == 1
    for example in sample("niah", "train", kinds="multi_value", num_values=3, num_needles=9):
        assert len(example.questions) == 3
        assert all(q.answers[0].count(", ") == 2 for q in example.questions)


def test_keys_share_words_as_often_as_asked():
    def shared(**options):
        examples = sample("niah", "test", kinds="multi_key", **options)
        asked = [q.info["shares_word"] for e in examples for q in e.questions]
        return sum(asked) / len(asked)

    assert shared(share_words=0) == 0
    assert 0.4 < shared(share_words=0.5) < 0.95
    assert shared(share_words=1) == 1


@pytest.mark.parametrize("name", SETS)
def test_records_round_trip(name):
    for example in sample(name, "train", 5):
        record = to_record(example)
        assert from_record(record) == example
        assert from_record({**record, "id": record["id"].encode()}) == example


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("name", SETS)
def test_stored_examples_are_the_generated_ones(name, data_dir, capfd):
    for split in generated.SPLITS:
        source = data.load(name, split, data_dir, **SMALL)
        assert len(source) == SMALL[f"num_{split}"]
        assert list(source) == sample(name, split, len(source))
        assert source[-1] == source[len(source) - 1]
    assert len(data.load(name, "test[:50%]", data_dir, **SMALL)) == 2
    out, err = capfd.readouterr()
    assert "Downloading" not in out + err


def test_options_have_folders_of_their_own(data_dir):
    few = data.load("biography", "test", data_dir, num_documents=2, num_questions=3, **SMALL)
    assert {len(e.documents) for e in few} == {2}
    assert {len(e.questions) for e in few} == {3}
    other = data.load("biography", "test", data_dir, num_documents=3, **SMALL)
    assert {len(e.documents) for e in other} == {3}


def test_a_mixture_made_anew_goes_on_at_any_item(data_dir):
    sources = [data.load(name, "train", data_dir, **SMALL) for name in ("biography", "niah")]
    rest = list(itertools.islice(mixture(sources, [0.75, 0.25], seed=3), 17, 57))
    resumed = mixture(sources, [0.75, 0.25], seed=3)
    assert rest == [resumed[i] for i in range(17, 57)]


def test_pipeline_shuffles_every_epoch_anew_and_mixture_keeps_weights(data_dir):
    source = data.load("biography", "train", data_dir, **SMALL)
    ids = [e.id for e in pipeline(source, seed=0, num_epochs=2)]
    first, second = ids[:12], ids[12:]
    assert len(ids) == 24
    assert set(first) == set(second) == {e.id for e in source}
    assert first != second
    assert ids != [e.id for e in pipeline(source, seed=1, num_epochs=2)]

    needles = data.load("niah", "train", data_dir, **SMALL)
    mixed = mixture([source, needles], [4, 1], seed=0)
    kinds = collections.Counter(mixed[i].id.split("-")[0] for i in range(100))
    assert kinds == {"biography": 80, "niah": 20}


@pytest.mark.parametrize(
    ("call", "error", "names"),
    [
        (lambda: data.load("biografy", "test"), ValueError, "biography, niah"),
        (lambda: data.load("niah", "dev"), ValueError, "train, validation, test"),
        (lambda: data.load("niah", "test", tokens=9), TypeError, "num_tokens"),
        (lambda: data.load("niah", "test", kinds="x"), ValueError, "multi_key"),
        (lambda: data.load("niah", "test", share_words=2), ValueError, "share_words=2"),
        (
            lambda: data.load("biography", "test", num_documents=21),
            ValueError,
            "1 to 20",
        ),
        (
            lambda: data.load("biography", "test", num_questions=0),
            ValueError,
            "num_questions",
        ),
        (lambda: biography.generate("dev", 0, BIOGRAPHY), ValueError, "validation"),
        (lambda: mixture([[1]], [1, 2], 0), ValueError, "weight"),
    ],
)
def test_mistakes_are_named(call, error, names):
    with pytest.raises(error, match=names):
        call()
