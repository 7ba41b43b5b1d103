"""The front door: documents in, answers out, by the very paths that the programs take."""

import dataclasses

import jax
import numpy as np
import pytest

import kvpacket_jax as kvp
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.serve import found, identity, loading, session
from tests.support.corpus import tree

DOCUMENTS = {"ferry": "the ferry leaves at noon", "bus": "the bus leaves at two"}
MADE_WITH = {"template": "completion", "preamble": "Answer."}


@pytest.fixture(scope="module")
def model(byte_model, tmp_path_factory):
    """Loaded where jax keeps no programs yet: they are kept beside the models from then on."""
    name, folder = "jax_compilation_cache_dir", tmp_path_factory.mktemp("models")
    before = getattr(jax.config, name)
    jax.config.update(name, None)
    yield kvp.load_model(str(byte_model), "float32", cache_dir=folder)
    assert getattr(jax.config, name) == str(folder / "compiled")
    kept = str(folder / "mine")
    jax.config.update(name, kept)  # what is set already stays
    kvp.load_model(str(byte_model), "float32", cache_dir=folder)
    assert getattr(jax.config, name) == kept
    jax.config.update(name, before)


def test_documents_are_added_listed_and_asked_about(model, tmp_path):
    store = kvp.Store(tmp_path / "packets", model, **MADE_WITH)  # the primer
    assert store.documents() == [] and str(tmp_path / "packets") in repr(store)
    assert store.add(DOCUMENTS) == kvp.Added(["ferry", "bus"], [])
    before = tree(store.folder)
    more = {"bus": DOCUMENTS["bus"], "tram": "the tram is late", "again": DOCUMENTS["ferry"]}
    assert store.add(more) == kvp.Added(["tram"], ["bus", "again"])
    assert before.items() < tree(store.folder).items()
    assert store.documents() == ["again", "bus", "ferry", "tram"]
    given = "When does the ferry leave?", ["bus", "ferry"], 6
    answer = store.ask(*given, recompute_below=0.0)
    assert answer.documents == ("ferry", "bus")  # it is asked about the ferry
    wording = identity.wording(*MADE_WITH.values())
    loaded = loading.load_for_store(
        model.name, "float32", store.folder, template=MADE_WITH["template"]
    )
    asked = loaded.model, store.folder, ["bus", "ferry"], wording
    opened = session.read(found.find(*asked, adapter=loaded.adapter), 1)  # as the ferry is asked of
    assert "".join(session.answer(opened, "When does the ferry leave?", 6)) == answer.text != ""
    assert store.ask(given[0], iter(given[1]), 6, recompute_below=0.0) == answer
    full = store.ask(*given, method="full_recompute")
    assert full.text
    assert not answer.reread and not full.reread and 0 < answer.confidence < 1
    # As sure as it is, it is not read again; a little less, and the full context answers.
    assert store.ask(*given, recompute_below=answer.confidence) == answer
    doubted = store.ask(*given, recompute_below=answer.confidence + 1e-6)
    assert doubted.text == full.text and doubted.reread
    assert abs(doubted.confidence - full.confidence) < 1e-5


def test_the_words_of_another_document_are_in_doubt(model, tmp_path, monkeypatch):
    """Whose packet misleads; however sure the model is of them."""
    store = kvp.Store(tmp_path, model, **MADE_WITH)
    store.add(DOCUMENTS)
    given = "When does the ferry leave?", ["bus", "ferry"], 6
    full = store.ask(*given, method="full_recompute").text
    for said, reread in (("at two", True), ("at noon", False)):
        answers = [session.Said(said, 1.0)], [session.Said(full, 1.0)]
        monkeypatch.setattr(session, "_decode", lambda *_, left=iter(answers): next(left))
        answer = store.ask(*given, recompute_below=1e-9)
        assert (answer.text, answer.reread) == ((full, True) if reread else (said, False))


def test_many_questions_are_answered_as_each_alone(model, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "ROWS", 2)
    store = kvp.Store(tmp_path, model, **MADE_WITH)
    store.add(DOCUMENTS)
    questions = ["When does the ferry leave?", "Is it?", "And the bus, when does it leave, say?"]
    for method in ("kv_packet", "full_recompute"):
        given = ["bus", "ferry"], 6, method
        apart = [store.ask(q, *given, recompute_below=0.0) for q in questions]
        for below in (0.0, sorted(a.confidence for a in apart)[1] + 1e-5):  # two are less sure
            together = store.ask_all(questions, *given, recompute_below=below)
            alone = [store.ask(q, *given, recompute_below=below) for q in questions]
            assert [a.text for a in together] == [a.text for a in alone]
            reread = 2 if below and method == "kv_packet" else 0
            assert sum(a.reread for a in together) == sum(a.reread for a in alone) == reread
    answered = []
    monkeypatch.setattr(session, "prefill", lambda *_: answered.append(1))
    for wrong, message in (
        ([*questions, " "], "The question is empty"),
        ([*questions, "x" * 5000], "The request spans"),
        ("When?", "Questions are a list of texts, one or more; found 'When"),
        ([], "Questions are a list"),
    ):
        with pytest.raises(ValueError, match=message):
            store.ask_all(wrong, ["bus"])
    with pytest.raises(ValueError, match=r"recompute_below is 1\.5, not from 0 to 1"):
        store.ask("When?", ["bus"], recompute_below=1.5)
    assert not answered


def test_a_store_sees_what_its_own_adapter_made(model, tmp_path):
    soft = adapter_lib.init(jax.random.key(0), model.params["embedding"], 3, 2)
    wrapped = kvp.Store(tmp_path, model, soft, **MADE_WITH)
    bare = kvp.Store(tmp_path, model, "none", **MADE_WITH)
    wrapped.add(DOCUMENTS)
    assert bare.documents() == []
    with pytest.raises(ValueError, match=r"adapter: 3 \+ 2 soft tokens \(\w+…\), not none"):
        bare.ask("When?", ["ferry"])
    # What is said names the flags of both builds.
    squeezed = kvp.Store(tmp_path, model, "none", **MADE_WITH, compress="knorm", keep=0.25)
    bare.add({"ferry": DOCUMENTS["ferry"]})
    label = "knorm/keep=0.25"
    said = rf"\(without --compress and --keep\), or .* --adapter=none --compress={label}\."
    with pytest.raises(ValueError, match=said):
        squeezed.ask("When?", ["ferry"])
    assert (bare.documents(), wrapped.documents()) == (["ferry"], ["bus", "ferry"])


def test_with_a_key_nothing_is_read_that_another_wrote(model, tmp_path):
    key, other = tmp_path / "key", tmp_path / "other"
    key.write_text("k" * 32)
    other.write_text("o" * 32)
    folder = tmp_path / "packets"
    mine, theirs = (
        kvp.Store(folder, model, "none", **MADE_WITH, key_file=file) for file in (key, other)
    )
    unsigned = kvp.Store(folder, model, "none", **MADE_WITH)
    unsigned.add(DOCUMENTS)
    with pytest.raises(ValueError, match="signed by nobody"):
        mine.ask("When?", ["ferry"], 2)
    with pytest.warns(UserWarning, match="is damaged: .* It is built anew"):  # it may be anybody's
        assert mine.add(DOCUMENTS) == kvp.Added(["ferry", "bus"], [])
    assert mine.add(DOCUMENTS) == kvp.Added([], ["ferry", "bus"])
    assert mine.ask("When?", ["ferry"], 2) == unsigned.ask("When?", ["ferry"], 2)
    before = tree(folder)
    for store, said in ((unsigned, "a key, and none was given"), (theirs, "another key than")):
        with pytest.raises(ValueError, match=f"are signed with {said}"):
            store.add({"tram": "the tram is late"})
    assert tree(folder) == before
    elsewhere = kvp.Store(tmp_path / "theirs", model, "none", **MADE_WITH, key_file=other)
    elsewhere.add(DOCUMENTS)
    for written in (
        *elsewhere.folder.glob("documents/*/*.entry"),
        *elsewhere.folder.rglob("*.json"),
    ):
        place = folder / written.relative_to(elsewhere.folder)
        whole = place.read_bytes()
        place.write_bytes(written.read_bytes())
        if written.name != "provenance.json":
            with pytest.raises(ValueError, match="signed with another key, or was changed"):
                mine.ask("When?", ["ferry", "bus"], 2)
        place.write_bytes(whole)
    mine.ask("When?", ["ferry", "bus"], 2)


@pytest.mark.parametrize("signed", [False, True])
def test_a_text_under_a_new_id_leaves_its_packet_as_it_is(model, tmp_path, signed):
    (tmp_path / "key").write_text("k" * 32)
    key_file = tmp_path / "key" if signed else None
    store = kvp.Store(tmp_path / "packets", model, "none", **MADE_WITH, key_file=key_file)
    store.add(DOCUMENTS | {"tram": "the tram is late"})
    before = tree(store.folder / "packets")
    assert store.add({"again": DOCUMENTS["ferry"]}) == kvp.Added([], ["again"])
    assert tree(store.folder / "packets") == before
    store.ask("When?", ["ferry", "again"], 2)


def test_mistakes_are_named(model, tmp_path):
    store = kvp.Store(tmp_path / "packets", model, "none", **MADE_WITH)
    with pytest.raises(FileNotFoundError, match="no store .*packets"):
        store.ask("When?", ["ferry"])
    for documents, message in (
        ({}, "No document was given"),
        ({"a": ""}, "document 'a': text must be a text that is not empty"),
        ({"a": "x" * 5000}, "document 'a' spans 5002 positions"),
        ({1: "x", "1": "y"}, "two documents of the id '1'"),
        ("one text", "Documents are a dict of texts by ids; found a str"),
    ):
        with pytest.raises(ValueError, match=message):
            store.add(documents)
    assert not store.folder.exists()
    store.add(DOCUMENTS)
    for arguments, message in (
        (("", ["ferry"]), "The question is empty"),
        (("When?", []), "No document was named: give ids. .* has bus, ferry"),
        (("When?", "ferry"), "a list of ids, not the text 'ferry'"),
        (("When?", ["fery"]), "no document 'fery'. It has ferry, bus"),
        (("When?", [1]), "Ids of documents are texts; 1 is not one: give '1'"),
        (("When?", ["ferry"], 0), "new_tokens is 0: an answer has 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            store.ask(*arguments)
    with pytest.raises(FileNotFoundError, match="There is no adapter absent"):
        kvp.Store(tmp_path, model, "absent")
    with pytest.raises(ValueError, match="kv_distill needs an adapter with a distiller"):
        kvp.Store(tmp_path, model, "none", **MADE_WITH, compress="kv_distill")
    for wrong, message in (
        ({"compress": True}, "compress is a text, snapkv say; not True"),
        ({"compress": "knorm", "keep": ".5"}, "keep is a share, .9 say; not '.5'"),
        ({"compress": "knorm", "keep": True}, "keep is a share, .9 say; not True"),
    ):
        with pytest.raises(TypeError, match=message):
            kvp.Store(tmp_path, model, "none", **MADE_WITH, **wrong)
    with pytest.raises(AttributeError, match="no attribute 'Stor'"):
        kvp.Stor  # noqa: B018


def broken(model, name: str):
    """The model with weights of a name that are not numbers."""
    params = dict(model.params)
    params[name] = params[name] * np.nan
    return dataclasses.replace(model, params=params)


def test_what_is_not_finite_is_said(model, tmp_path):
    kvp.Store(tmp_path / "good", model, "none", **MADE_WITH).add(DOCUMENTS)
    no_logits = kvp.Store(tmp_path / "good", broken(model, "final_norm"), "none", **MADE_WITH)
    with pytest.raises(ValueError, match="logits of .* are not finite"):
        no_logits.ask("When?", ["ferry"], 4)
    no_packets = kvp.Store(tmp_path / "bad", broken(model, "embedding"), "none", **MADE_WITH)
    with pytest.raises(ValueError, match="keys of layer 0 are not all finite"):
        no_packets.add(DOCUMENTS)
