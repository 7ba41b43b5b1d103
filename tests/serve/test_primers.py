"""Primers that a user chooses: a file's texts, or documents of the corpus."""

import json

import jax
import numpy as np
import pytest

import kvpacket_jax as kvp
from kvpacket_jax import adapters
from kvpacket_jax.data.examples import INSTRUCTION
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets import packet as packet_lib
from kvpacket_jax.packets.packet import build_packets
from kvpacket_jax.serve import build, corpus, found, identity, loading, primers, session
from kvpacket_jax.serve.primers import FromCorpus
from kvpacket_jax.similarity import Index, of_texts
from kvpacket_jax.storage import contents, listing, packet_file, store
from models import kv_cache
from tests.support.corpus import tree, write_corpus

WORDING = identity.wording("completion", "Answer.")
CHOICES = ("corpus:2", "similar:2")


@pytest.fixture(scope="module")
def soft(model):
    return adapter_lib.init(jax.random.key(0), model.params["embedding"], 3, 2)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return corpus.read_file(write_corpus(tmp_path_factory.mktemp("docs") / "docs.jsonl", 24))


def make(model, primer, adapter=None) -> primers.Maker:
    return primers.maker(model, adapter, primers.parse(primer), "completion")


def plan(model, maker, documents, **options) -> list[build.Part]:
    # One at a time by default: few programs are compiled.
    options = {"batch_tokens": 1, "openings": False} | options
    options |= {"adapter_name": maker.adapter_name, "choice": maker.choice}
    return build.plan(model, maker.adapter, WORDING, documents, **options)


def find(model, maker, folder, ids):
    provenance = identity.document_provenance(model, maker.adapter, WORDING, maker.choice)
    return [(e.packet, provenance) for e in store.find(folder, provenance, ids)]


def tokens_of(model, text: str) -> list[int]:
    return model.tokenizer.encode(WORDING.template.document_text(text))


def arrays_of(cache, first: int, last: int) -> list[np.ndarray]:
    return [np.asarray(x)[0, first:last] for part in (cache.k, cache.v) for x in part]


# ---- what is built


@pytest.mark.parametrize("choice", CHOICES)
def test_a_packet_is_the_documents_part_of_one_prefill(model, documents, choice, tmp_path):
    maker = make(model, choice)
    parts = plan(model, maker, documents)
    build.build(model, parts, tmp_path)
    texts = {document.id: tokens_of(model, document.text) for document in documents}
    preamble = identity.encode(model, WORDING._replace(instruction=INSTRUCTION)).preamble
    built = {id: (part, item) for part in parts[1:] for item in part.items for id in item.ids}
    assert built.keys() == texts.keys()
    for id, (part, item) in built.items():
        before, *chosen = map(list, part.primer)
        assert before == preamble and len(chosen) == 2
        assert all(text in texts.values() for text in chosen) and chosen[0] != chosen[1]
        assert list(item.tokens) == texts[id] not in chosen  # neither itself nor its equal
    for id in ("d3", "d10", "d1", "d17"):
        (packet,) = packet_file.load(tmp_path, find(model, maker, tmp_path, [id]), model)
        primer = [t for tokens in built[id][0].primer for t in tokens]
        (whole,) = build_packets(model, None, [primer + texts[id]])
        back = kv_cache.move(model.config, whole.cache, -np.int32(len(primer)))
        expected = arrays_of(back, len(primer), whole.length)
        assert packet.length == len(texts[id])
        for ours, plain in zip(arrays_of(packet.cache, 0, packet.length), expected, strict=True):
            np.testing.assert_allclose(ours, plain, atol=2e-5)


def test_a_trained_adapter_keeps_its_other_parts(model, documents, soft, tmp_path):
    maker = make(model, "similar:1", soft._replace(primer=np.arange(9, dtype=np.int32)))
    assert maker.adapter.header is soft.header and maker.adapter.primer is None
    parts = plan(model, maker, documents[:4])
    build.build(model, parts, tmp_path)
    item, primer = parts[1].items[0], [t for tokens in parts[1].primer for t in tokens]
    primed = soft._replace(primer=np.array(primer, np.int32))
    (expected,) = build_packets(model, primed, [item.tokens])
    wanted = find(model, maker, tmp_path, item.ids)
    (packet,) = packet_file.load(tmp_path, wanted[:1], model)
    assert packet.length == expected.length == len(item.tokens) + 5
    pair = (arrays_of(p.cache, 0, p.length) for p in (packet, expected))
    for ours, plain in zip(*pair, strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-5)


def test_documents_of_the_corpus_share_few_reads(model, documents, tmp_path, monkeypatch):
    reads = []
    original = build.read_primer
    monkeypatch.setattr(build, "read_primer", lambda *a: reads.append(a) or original(*a))
    parts = plan(model, make(model, "corpus:3"), documents, batch_tokens=512)
    assert max(len(batch.members) for part in parts for batch in part.batches) > 2
    build.build(model, parts, tmp_path)
    assert len(reads) == len(parts) <= 1 + 4  # the preamble has none
    assert build.build(model, parts, tmp_path) == set()
    assert len(reads) == len(parts)


def test_primers_of_many_lengths_share_few_programs(model, documents, tmp_path):
    programs = (packet_lib._padded_primer_cache, packet_lib._build)
    for program in programs:
        program.clear_cache()
    parts = plan(model, make(model, "similar:2"), documents)
    build.build(model, parts, tmp_path)
    assert len({sum(map(len, part.primer)) for part in parts}) > 10
    assert programs[0]._cache_size() <= 5 and programs[1]._cache_size() <= 10


@pytest.mark.parametrize("choice", CHOICES)
def test_two_shards_build_what_one_builds(model, documents, choice, tmp_path):
    maker = make(model, choice)
    build.build(model, plan(model, maker, documents), tmp_path / "one")
    for i in (1, 0):
        parts = plan(model, maker, documents, shard=(i, 2))
        assert sum(len(part.items) for part in parts) > 5
        build.build(model, parts, tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_another_corpus_makes_other_packets(model, documents, tmp_path):
    maker = make(model, "similar:1")
    build.build(model, plan(model, maker, documents), tmp_path)
    ids = [document.id for document in documents]
    before = find(model, maker, tmp_path, ids)
    changed = [*documents, corpus.Document("new", documents[5].text + " and", "new")]
    parts = plan(model, maker, changed)
    named = {id: item.name for part in parts for item in part.items for id in item.ids}
    written = build.build(model, parts, tmp_path)
    after = find(model, maker, tmp_path, ids)
    assert [name for name, _ in after] == [named[id] for id in ids]
    moved = {id for id, old, new in zip(ids, before, after, strict=True) if old != new}
    assert "d5" in moved and len(moved) < len(ids) / 2  # others are primed as they were
    assert written == {named[id] for id in {*moved, "new"}}
    loaded = packet_file.load(tmp_path, after, model)
    with store.writing(tmp_path / "copy") as writer:  # what is read knows what it is
        assert [writer.place(writer.prepare(packet)).packet for packet in loaded] == [
            name for name, _ in after
        ]


# ---- what is chosen


def test_the_most_similar_are_those_that_share_rare_tokens():
    cases = [[1, 1, 2, 9], [1, 3, 9], [4, 5, 6], [2, 1, 9, 9], [6, 5, 9], [7, 9]]
    index = Index([np.array(case, np.int32) for case in cases])
    assert index.closest(0, 2) == [3, 1]
    assert index.closest(2, 1) == [4]
    assert index.closest(4, 2)[0] == 2
    assert index.closest(5, 3) == index.closest(5, 5)[:3] and 5 not in index.closest(5, 5)
    alone = Index([[1], [2], [3]])
    assert alone.closest(1, 2) == [0, 2]  # nothing is shared: by their order
    common = Index([[1, 2]] + [[1]] * 60_000 + [[1, 2]])  # 1 is not even looked at
    assert common.closest(0, 2) == [60_001, 1]


def test_documents_of_the_corpus_are_spread_and_of_moderate_length():
    cases = [[0] * n for n in (50, 6, 1, 7, 90, 5, 8, 7, 2)]  # the median is 7
    assert primers.spread(cases, 3) == [1, 3, 7]
    distinct = [[i, *case] for i, case in enumerate(cases)]
    choose = primers.chooser(FromCorpus("corpus", 2), distinct)
    assert choose(0) == choose(7) == (1, 3)
    assert (choose(1), choose(3)) == ((7, 3), (1, 7))


def test_a_long_document_primes_with_its_beginning(model, tmp_path):
    texts = {"long": "x y " * 300, "a": "the ferry", "b": "the bus", "c": "the tram"}
    parts = plan(model, make(model, "corpus:3"), corpus.from_mapping(texts))
    for part in parts[1:]:
        assert all(len(tokens) <= primers.LONGEST for tokens in part.primer[1:])
    assert any(len(tokens) == primers.LONGEST for part in parts[1:] for tokens in part.primer[1:])


# ---- a file


def test_a_file_of_texts_replaces_the_primer(model, documents, tmp_path):
    text, lines = tmp_path / "primer.txt", tmp_path / "primer.jsonl"
    text.write_text("The ferry waits.")
    records = [{"id": "1", "text": "One."}, {"id": "2", "text": "Two."}]
    lines.write_text("\n".join(map(json.dumps, records)))
    one, two = make(model, text), make(model, str(lines))
    for maker, texts in ((one, ["The ferry waits."]), (two, ["One.", "Two."])):
        expected = adapters.primer(model, "completion", texts).primer
        np.testing.assert_array_equal(maker.adapter.primer, expected)
        assert maker.choice is None
    names = [f"primer --primer={tmp_path / file}" for file in ("primer.txt", "primer.jsonl")]
    assert [one.adapter_name, two.adapter_name] == names
    folder = tmp_path / "store"
    build.build(model, plan(model, one, documents), folder)
    assert session.read(found.find(model, folder, ["d3"], WORDING, "kv_packet", *one)).packets
    with pytest.raises(
        ValueError,
        match=rf"another adapter: {names[0]} \(\w+…\), not {names[1]} \(",
    ):
        found.find(model, folder, ["d3"], WORDING, "kv_packet", *two)


# ---- a store of several choices


def test_a_store_holds_several_choices_and_names_them(model, tmp_path):
    texts = {"ferry": "the ferry leaves", "bus": "the bus leaves", "tram": "the tram is late"}
    options = {"template": "completion", "preamble": "Answer."}
    similar = kvp.Store(tmp_path, model, primer="similar:1", **options)
    spread = kvp.Store(tmp_path, model, primer="corpus:1", **options)
    plain = kvp.Store(tmp_path, model, **options)
    assert similar.add(texts).built == ["ferry", "bus", "tram"]
    assert (similar.documents(), spread.documents()) == (["bus", "ferry", "tram"], [])
    assert similar.ask("When?", ["ferry", "bus"], 4).documents == ("ferry", "bus")
    assert sorted(spread.add(texts).built) == sorted(texts)
    assert sorted(similar.add(texts).present) == sorted(texts)
    with pytest.raises(ValueError, match="made with another adapter: ") as refused:
        plain.ask("When?", ["ferry"])
    for there in (
        "primer --primer=similar:1 (",
        "primer --primer=corpus:1 (",
        ", not primer (",
        "--adapter=primer --primer=similar:1",
        "--adapter=primer --primer=corpus:1",
        "launch.build_packets --adapter=primer without --primer.",
    ):
        assert there in str(refused.value)
    with pytest.raises(ValueError, match=r"not primer --primer=similar:2 \("):
        kvp.Store(tmp_path, model, primer="similar:2", **options).ask("When?", ["ferry"])
    listed = contents.read(tmp_path)
    assert {d.names.shown_adapter for d in listed} == {
        "primer --primer=similar:1",
        "primer --primer=corpus:1",
    }
    assert "Documents: 3, built in 2 ways. Packets: 6, " in listing.total(listed)
    assert not any(d.problem for d in listed)
    assert all(primers.is_replaced(d.names.shown_adapter) for d in listed)
    assert not primers.is_replaced(
        primers.maker(model, "primer", template="completion").adapter_name
    )


@pytest.mark.parametrize(
    ("primer", "message"),
    [
        ("corpus:0", "corpus:0 has no number of documents: as corpus:3"),
        ("similar:", "similar: has no number of documents: as similar:3"),
        (
            "absent.txt",
            "no primer 'absent.txt': no such file. --primer takes a file",
        ),
        ("empty.txt", "empty.txt has no text"),
        ("bytes.txt", "bytes.txt is not UTF-8 text"),
        ("bad.jsonl", "bad.jsonl, line 1: text missing"),
    ],
)
def test_a_primer_that_is_none_is_refused(tmp_path, monkeypatch, primer, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    (tmp_path / "bad.jsonl").write_text('{"id": "a"}')
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        primers.parse(primer)


def test_what_does_not_fit_is_refused(model, documents, tmp_path):
    with pytest.raises(ValueError, match="Bare packets have no primer. Leave out --adapter=none"):
        make(model, "similar:2", "none")
    with pytest.raises(ValueError, match="Bare packets have no primer"):
        loading.load_for_store(
            "absent", "auto", tmp_path, adapter="none", primer=FromCorpus("x", 1)
        )
    (tmp_path / "long.txt").write_text("x" * 5000)
    with pytest.raises(ValueError, match=r"long.txt has 5,\d+ tokens; the context of .* is 4,096"):
        make(model, tmp_path / "long.txt")
    for kind in ("corpus", "similar"):
        maker = make(model, f"{kind}:2")
        few = [documents[0], documents[0]._replace(id="again"), documents[1]]
        with pytest.raises(ValueError, match=f"{kind}:2 takes 2 other .* has 2 of different texts"):
            plan(model, maker, few)
        long = [*documents, corpus.Document("long", "x" * 4000, "docs.jsonl, line 25")]
        with pytest.raises(ValueError, match=f"'long' after its primer, {kind}:2: .* spans"):
            plan(model, maker, long)
        left_out = []
        parts = plan(model, maker, long, on_bad=left_out.append)
        ids = {id for part in parts for item in part.items for id in item.ids}
        assert len(left_out) == 1 and ids == {document.id for document in documents}


def test_a_text_of_signs_alone_is_like_no_other_and_like_any():
    index = of_texts(["the ferry leaves", "— | —", "the bus leaves", "the ferry is red"])
    assert index.closest(1, 2) == [0, 2]
    assert {*index.closest(0, 2)} == {2, 3}
