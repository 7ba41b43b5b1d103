"""A session reads the card of its adapter."""

import jax.numpy as jnp

from kvpacket_jax.adapters import card
from kvpacket_jax.compress import make, shortened
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.serve import build, corpus, found, identity, session

WORDING = identity.wording("completion", "Answer.")


def test_a_session_is_judged_by_its_documents_and_their_lengths(model, tmp_path):
    primed = adapter_lib.empty(model.config.dim)._replace(primer=jnp.array([1, 2, 3], jnp.int32))
    adapter_lib.save_adapter(tmp_path / "mine", primed, {})
    documents = corpus.from_mapping({"a": "The ferry leaves at 7.", "b": "No."})
    small = make("knorm")
    for compressor in (None, small):
        parts = build.plan(model, primed, WORDING, documents, compressor=compressor)
        build.build(model, parts, tmp_path / "store")
    longest = len(model.tokenizer.encode(WORDING.template.document_text("The ferry leaves at 7.")))

    def remark(ids, adapter=primed, method="kv_packet", compressor=None):
        made_with = adapter, "mine", None, compressor
        given = model, tmp_path / "store", ids, WORDING, method, *made_with
        opened = session.read(found.find(*given))
        return session.remark(opened, str(tmp_path / "mine"), 0.9)

    asked = WORDING, "kv_packet", primed
    assert "has no card" in remark(["a", "b"])
    score = {card.ADAPTER: card.Score(1.0, 1.0, 1.0, 1.0, 0.0)}
    rows = [card.Row("notes", 2, longest - 1, 9, 1.0, score)]
    measured = card.Card(model.name, rows, "", "completion")
    card.write(tmp_path / "mine" / card.FILE, measured, primed, "float32")
    assert remark(["b", "b"]) == ""
    assert f"2 documents of up to {longest} tokens" in remark(["a", "b"])
    assert remark(["a", "b"], method="full_recompute") == ""
    renamed = measured._replace(model="as it was called then")
    for of_another in (renamed, renamed._replace(model_fingerprint="x")):
        card.write(tmp_path / "mine" / card.FILE, of_another, primed, "float32")
        assert "is of as it was called then, not " in remark(["b", "b"])
    known = renamed._replace(model_fingerprint=model.fingerprint)
    card.write(tmp_path / "mine" / card.FILE, known, primed, "float32")
    assert remark(["b", "b"]) == ""
    path = tmp_path / "mine" / card.FILE
    best_first = known._replace(best_first=True)
    card.write(path, best_first, primed, "float32")
    opened = session.read(found.find(model, tmp_path / "store", ["b", "b"], *asked))
    for order, said in ((True, ""), (False, "without --nobest_first")):
        assert said in (text := session.remark(opened, str(tmp_path / "mine"), 0.9, 0.0, order))
        assert bool(text) == bool(said)
    path.write_text(path.read_text().replace('"documents": 2', '"documents": 9'))
    assert "not known" in remark(["b", "b"]) and card.FILE in remark(["b", "b"])
    assert "a primer of their own" in session.remark(opened, "mine --primer=own.txt", 0.9)
    assert f"compressed by {shortened(small.label)}." in remark(["b", "b"], compressor=small)
