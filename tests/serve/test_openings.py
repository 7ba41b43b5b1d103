"""Documents that come first have packets of their own: what the full context has of them."""

import numpy as np
import pytest

import kvpacket_jax as kvp
from kvpacket_jax.methods import METHODS
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.packet import FIRST
from kvpacket_jax.serve import found, session
from kvpacket_jax.storage import contents, listing, removal
from kvpacket_jax.storage.packet_file import Damaged, packet_path

DOCUMENTS = {"ferry": "the ferry leaves at noon", "bus": "the bus leaves at two"}
MADE_WITH = {"template": "completion", "preamble": "Answer."}
QUESTION = "When does the ferry leave?"


@pytest.fixture(scope="module")
def adapter(model) -> Adapter:
    tokens = np.random.default_rng(0).normal(0, 1, (2, 2, model.config.dim)).astype(np.float32)
    return Adapter(*tokens)


def store_in(folder, model, adapter, **options) -> kvp.Store:
    store = kvp.Store(folder, model, adapter, **MADE_WITH | options)
    if not options:
        assert store.add(DOCUMENTS) == kvp.Added(["ferry", "bus"], [])
    return store


def open_session(store: kvp.Store, ids):
    given = store.model, store.folder, ids, store._wording, "kv_packet", *store._maker
    return session.read(found.find(*given, key=store._key))


def places(store: kvp.Store, ids) -> list[str]:
    return [p.manifest.place for p in open_session(store, ids).apart()[1]]


def test_whichever_comes_first_is_read_from_its_own_packet(model, adapter, tmp_path):
    store = store_in(tmp_path, model, adapter)
    for ids in (["ferry", "bus"], ["bus", "ferry"]):
        opened = open_session(store, ids)
        preamble, documents = opened.apart()
        assert [packet.manifest.place for packet in documents] == [FIRST, ""]
        tokens = [packet.manifest.tokens for packet in documents]
        method = METHODS["kv_packet"](adapter=adapter)
        expected = method.build(model, preamble[0].manifest.tokens, tokens)
        for packet, other in zip((*preamble, *documents), expected, strict=True):
            assert packet.length == other.length
            for one, two in zip(packet.cache.k, other.cache.k, strict=True):
                close = np.asarray(one)[:, : packet.length], np.asarray(two)[:, : packet.length]
                np.testing.assert_allclose(*close, atol=1e-5)


def test_a_document_alone_is_answered_from_as_if_it_were_read(model, adapter, tmp_path):
    store = store_in(tmp_path, model, adapter)
    for id in DOCUMENTS:
        full = store.ask(QUESTION, [id], 8, method="full_recompute")
        answer = store.ask(QUESTION, [id], 8, recompute_below=1.0)
        assert answer.text == full.text and not answer.reread  # there is nothing to read again
        assert abs(answer.confidence - full.confidence) < 1e-4
        assert session.remark(open_session(store, [id]), "mine", 1.0) == ""


def test_the_document_most_like_the_question_is_read_first(model, adapter, tmp_path):
    store, given = store_in(tmp_path, model, adapter), ["ferry", "bus"]
    questions = ["When does the bus leave?", QUESTION, "Is the bus late?"]
    options = {"new_tokens": 6, "recompute_below": 0.0}
    expected = [
        store.ask(q, order, best_first=False, **options)
        for q, order in zip(questions, (["bus", "ferry"], given, ["bus", "ferry"]), strict=True)
    ]
    assert [store.ask(q, given, **options) for q in questions] == expected
    assert store.ask_all(questions, given, **options) == expected
    full = [store.ask(q, given, 6, method="full_recompute").documents for q in questions]
    assert full == [each.documents for each in expected]
    assert store.ask(questions[0], given, 6, recompute_below=1.0).documents == ("bus", "ferry")
    plain = store_in(tmp_path / "plain", model, adapter, openings=False)
    plain.add(DOCUMENTS)
    for method in ("kv_packet", "full_recompute"):
        assert plain.ask(questions[0], given, method=method).documents == tuple(given)


def test_a_store_without_them_answers_from_what_it_has(model, adapter, tmp_path):
    plain = store_in(tmp_path, model, adapter, openings=False)
    plain.add(DOCUMENTS)
    assert not (tmp_path / "openings").exists() and places(plain, ["ferry", "bus"]) == ["", ""]
    number = len(list(tmp_path.glob("packets/*.safetensors")))
    store = store_in(tmp_path, model, adapter, openings=True)
    assert store.add(DOCUMENTS) == kvp.Added([], ["ferry", "bus"])  # these were there
    assert len(list(tmp_path.glob("packets/*.safetensors"))) == number + len(DOCUMENTS)
    assert places(store, ["ferry", "bus"]) == [FIRST, ""]
    assert store.documents() == ["bus", "ferry"]
    bare = kvp.Store(tmp_path / "bare", model, "none", **MADE_WITH)
    bare.add(DOCUMENTS)
    assert not (tmp_path / "bare" / "openings").exists()


def test_that_of_an_earlier_text_or_another_preamble_is_not_read(model, adapter, tmp_path):
    store = store_in(tmp_path, model, adapter)
    other = kvp.Store(tmp_path, model, adapter, template="completion", preamble="Say it.")
    other.add({"tram": "the tram is late"})
    assert places(other, ["ferry", "bus"]) == ["", ""]  # theirs were read after "Answer."
    other.add(DOCUMENTS)
    assert places(other, ["ferry", "bus"]) == places(store, ["ferry", "bus"]) == [FIRST, ""]
    # As if a build had been killed before its last part.
    store_in(tmp_path, model, adapter, openings=False).add({"ferry": "the ferry has sunk"})
    assert places(store, ["ferry", "bus"]) == ["", ""]
    assert places(store, ["bus", "ferry"]) == [FIRST, ""]


def test_builds_with_different_texts_of_a_document_have_each_their_own(model, adapter, tmp_path):
    store = store_in(tmp_path, model, adapter)
    other = store_in(tmp_path, model, adapter, primer="corpus:1")
    other.add({"ferry": "the ferry has sunk", "bus": DOCUMENTS["bus"]})
    for one in (store, other):
        assert places(one, ["ferry", "bus"]) == places(one, ["bus", "ferry"]) == [FIRST, ""]
    first = [open_session(s, ["ferry"]).apart()[1][0].manifest.tokens for s in (store, other)]
    assert first[0] != first[1]
    assert removal.superseded(tmp_path).packets == removal.prune(tmp_path).packets == 0


@pytest.mark.parametrize("openings", [False, True])
def test_that_of_a_text_that_was_replaced_can_be_pruned(openings, model, adapter, tmp_path):
    store_in(tmp_path, model, adapter)
    store = store_in(tmp_path, model, adapter, openings=openings)
    store.add({"ferry": "the ferry has sunk"})
    assert removal.superseded(tmp_path).packets == removal.prune(tmp_path).packets == 2
    assert places(store, ["bus", "ferry"]) == [FIRST, ""]
    assert places(store, ["ferry", "bus"]) == ([FIRST, ""] if openings else ["", ""])
    number = len(list(tmp_path.glob("packets/*.safetensors")))
    assert number == 4 + openings  # the preamble's, and of each document one or two


def test_a_damaged_one_is_named_and_mended(model, adapter, tmp_path):
    store = store_in(tmp_path, model, adapter)
    name = open_session(store, ["ferry", "bus"]).wanted[1].name
    path = packet_path(tmp_path, name)
    spoiled = bytearray(path.read_bytes())
    spoiled[-3] ^= 4
    path.write_bytes(spoiled)
    with pytest.raises(Damaged, match=f"Document 'ferry': .*{name}"):
        store.ask(QUESTION, ["ferry", "bus"])
    given = QUESTION, ["bus", "ferry"], 4
    assert store.ask(*given, recompute_below=0.0, best_first=False).text
    found = contents.read(tmp_path, every_byte=True)
    (bad,) = [d for d in found if d.problem]
    assert (bad.id, bad.packet, bad.problem) == ("ferry", name, "damaged")
    assert "1 missing or damaged" in listing.total(found)
    with pytest.warns(UserWarning, match=name):
        store.add(DOCUMENTS)
    assert store.ask(QUESTION, ["ferry", "bus"], 4, recompute_below=0.0).text
    path.unlink()
    store = store_in(tmp_path, model, adapter, openings=True)  # which has read nothing yet
    with pytest.raises(FileNotFoundError, match=f"Document 'ferry': .*{name}"):
        store.ask(QUESTION, ["ferry", "bus"])


def test_they_are_counted_removed_and_kept_with_their_documents(model, adapter, tmp_path):
    store = store_in(tmp_path, model, adapter)
    found = contents.read(tmp_path, every_byte=True)
    assert listing.table(found).row_count == 2
    assert "Packets: 2, " in listing.total(found)
    assert "For documents that come first: 2 more, " in listing.total(found)
    assert removal.prune(tmp_path).packets == 0
    store.remove(["ferry"])
    assert [d.is_opening for d in contents.read(tmp_path)] == [False, True]
    assert len(list(tmp_path.glob("packets/*.safetensors"))) == 3  # the preamble's and the bus's
    assert places(store, ["bus"]) == [FIRST]


def test_it_is_not_read_in_place_of_the_other(model, adapter, tmp_path):
    """As if a folder's files had been mixed up."""
    store = store_in(tmp_path, model, adapter)
    for path in tmp_path.glob("openings/*/*.json"):
        for there in tmp_path.glob(f"documents/*/{path.name}"):
            if path.name != "provenance.json":
                there.write_text(path.read_text())
    with pytest.raises(ValueError, match="another place: first, not any"):
        store.ask(QUESTION, ["ferry", "bus"], 4)


def test_an_unchanged_text_keeps_that_of_every_preamble(model, adapter, tmp_path):
    """Though its packet is another, after another primer."""
    given = dict(template="completion", primer="similar:1")
    one, other = (kvp.Store(tmp_path, model, adapter, preamble=p, **given) for p in ("A.", "B."))
    for store in (one, other):
        store.add(DOCUMENTS)
    before = one.documents(), len(list(tmp_path.glob("packets/*.safetensors")))
    one.add(DOCUMENTS | {"late": "the ferry leaves at noon, late"})
    assert len(list(tmp_path.glob("packets/*.safetensors"))) > before[1]
    assert places(one, ["ferry", "bus"]) == places(other, ["ferry", "bus"]) == [FIRST, ""]


def test_an_entry_that_nobody_signed_is_refused(model, adapter, tmp_path, monkeypatch):
    store_in(tmp_path, model, adapter, openings=False).add({"tram": "the tram is late"})
    monkeypatch.setenv("KVPACKET_STORE_KEY", "k" * 32)
    signed = store_in(tmp_path / "signed", model, adapter)
    assert places(signed, ["ferry", "bus"]) == [FIRST, ""]
    for path in (tmp_path / "signed").glob("openings/*/*.json"):
        path.write_text(path.read_text().replace('"hmac": "', '"hmac": "0'))
    with pytest.raises(Damaged, match="document 'ferry' is not to be trusted"):
        signed.ask(QUESTION, ["ferry", "bus"])
