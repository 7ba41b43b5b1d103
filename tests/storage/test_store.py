"""Packets on disk: what is read is what was written, or it is refused."""

import dataclasses
import hashlib
import json
import random

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.packet import Provenance, build_packets
from kvpacket_jax.storage import contents, packet_file, store
from kvpacket_jax.storage.packet_file import Entry, packet_path
from kvpacket_jax.storage.provenance import Names
from models import kv_cache
from models.rope import Llama3Rope, Rope
from tests.support.byte_model import ids
from tests.support.corpus import tree
from tests.support.stores import put


def adapter_of(model) -> adapter_lib.Adapter:
    return adapter_lib.init(jax.random.key(0), model.params["embedding"], 3, 2)


def visible(cache) -> dict[str, np.ndarray]:
    """Keys and values `[L, S, K, H]` of the valid slots as bits, and their positions."""
    seen = np.asarray(cache.valid[0])
    k, v = (np.stack([np.asarray(x)[0] for x in part])[:, seen] for part in (cache.k, cache.v))
    return {
        "k": k.view(np.uint8),
        "v": v.view(np.uint8),
        "at": np.asarray(cache.positions)[0, seen],
    }


def assert_same(one, other) -> None:
    assert (one.length, one.manifest) == (other.length, other.manifest)
    found, expected = visible(one.cache), visible(other.cache)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


# ---- what is read is what was written


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_is_read_is_what_was_written(load, tmp_path, dtype, scan, wrapped):
    model = load(dtype, scan)
    adapter = adapter_of(model) if wrapped else None
    documents = [ids(i, n) for i, n in enumerate((1, 33, 60))]
    wanted = put(tmp_path, model, adapter, *documents)
    # Twice the same, and in another order than they were built in.
    order = [2, 0, 1, 2]
    found = packet_file.load(tmp_path, [wanted[i] for i in order], model)
    built = build_packets(model, adapter, documents)
    for i, packet in zip(order, found, strict=True):
        assert_same(packet, built[i])
        assert packet.cache.k[0].shape[-3] == built[i].cache.k[0].shape[-3]  # the bucket's slots


def test_scanned_and_unrolled_models_read_each_others_packets(load, tmp_path):
    for scan in (False, True):
        writer, reader = load(scan=scan), load(scan=not scan)
        folder = tmp_path / str(scan)
        (wanted,) = put(folder, writer, None, ids(0, 20))
        (found,) = packet_file.load(folder, [wanted], reader)
        (written,) = build_packets(writer, None, [ids(0, 20)])
        assert isinstance(found.cache.k, tuple) == scan
        assert_same(found, written)


def test_packets_of_shared_layers_are_another_models(byte_model, load, tmp_path):
    model = models.load(str(byte_model), "float32", shared_layers="1:2")
    (wanted,) = put(tmp_path, model, None, ids(0, 20))
    (found,) = packet_file.load(tmp_path, [wanted], model)
    (built,) = build_packets(model, None, [ids(0, 20)])
    assert found.manifest == built.manifest
    short = [kv_cache.resize(packet.cache, 20) for packet in (found, built)]
    jax.tree.map(np.testing.assert_array_equal, *short)
    assert load_file(packet_path(tmp_path, wanted[0]))["k.1"].size == 0
    packet_file.verify(tmp_path, wanted[0], model)
    with pytest.raises(ValueError, match="array k.1 is not"):
        packet_file.load(tmp_path, [wanted], load())


def test_a_packet_takes_its_true_length_and_is_readable_by_all(load, tmp_path):
    model = load("bfloat16")
    ((name, _),) = put(tmp_path, model, adapter_of(model), ids(0, 33))
    path = packet_path(tmp_path, name)
    arrays = load_file(path)
    c = model.config
    layers = {f"{x}.{i}" for x in "kv" for i in range(c.num_layers)}
    assert set(arrays) == layers | {packet_file.SEAL}
    for layer in layers:
        assert arrays[layer].shape == (33 + 5, c.num_kv_heads, c.head_dim)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


NAMED = Provenance("m" * 64, "t", "none", "none", "bfloat16", Llama3Rope(5e5, 8.0, 1.0, 4.0, 8192))
NAME = "81ade3e188f94cd7b271967fdd05f41057badb17cfbf67fb0e6df1138b1f2e53"


def test_a_name_is_the_same_everywhere():
    # Written down once: another version of Python or of a library must not find other names.
    assert packet_file.packet_name(NAMED, [1, 2, 3], 5) == NAME


# ---- or it is refused


def test_every_flipped_byte_is_refused(load, tmp_path):
    model = load("bfloat16")
    packets = put(tmp_path, model, adapter_of(model), *(ids(n, n) for n in range(17, 24)))
    # One whose header ends in padding.
    padded = [w for w in packets if b"}} " in packet_path(tmp_path, w[0]).read_bytes()]
    wanted = padded[:1]
    path = packet_path(tmp_path, wanted[0][0])
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    # All of the header, in two ways; every eleventh byte of the arrays; the seal.
    places = [*range(header), *range(header), *range(header, len(whole), 11)]
    places += range(len(whole) - 40, len(whole))
    for place in places:
        bad = bytearray(whole)
        bad[place] ^= rng.choice((1, 2, 4, 8, 16, 32, 64, 128, 255))
        path.write_bytes(bad)
        with pytest.raises(store.Damaged, match=str(path)):
            packet_file.verify(tmp_path, wanted[0][0], model)
    # White space for white space passes for JSON, and for the format's own reader.
    padding = [i for i in range(header - 8, header) if whole[i] == ord(" ")]
    assert padding
    for place in padding:
        path.write_bytes(whole[:place] + b"\t" + whole[place + 1 :])
        load_file(path)
        with pytest.raises(store.Damaged, match=str(path)):
            packet_file.verify(tmp_path, wanted[0][0], model)
    for cut in (0, 1, 7, 8, 9, header - 1, header, header + 5, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(store.Damaged, match=str(path)):
            packet_file.load(tmp_path, wanted, model)
    path.write_bytes(whole + b"\0")
    with pytest.raises(store.Damaged, match=str(path)):
        packet_file.load(tmp_path, wanted, model)
    path.write_bytes(whole)
    packet_file.verify(tmp_path, wanted[0][0], model)


def test_one_packet_in_the_place_of_another_is_refused(load, tmp_path):
    model = load()
    (one, provenance), (other, _) = put(tmp_path, model, None, ids(0, 20), ids(1, 20))
    packet_path(tmp_path, one).write_bytes(packet_path(tmp_path, other).read_bytes())
    with pytest.raises(store.Damaged, match=f"{one}.* another packet"):
        packet_file.load(tmp_path, [(one, provenance)], model)


def test_arrays_that_changed_places_are_refused(load, tmp_path):
    model = load()
    ((name, _),) = put(tmp_path, model, None, ids(0, 20))
    path = packet_path(tmp_path, name)
    arrays = load_file(path)
    whole = path.read_bytes()
    size = arrays["k.0"].nbytes
    header = 8 + int.from_bytes(whole[:8], "little")
    first, second = whole[header : header + size], whole[header + size : header + 2 * size]
    path.write_bytes(whole[:header] + second + first + whole[header + 2 * size :])
    np.testing.assert_array_equal(load_file(path)["k.0"], arrays["k.1"])
    with pytest.raises(store.Damaged, match="array k.0"):
        packet_file.verify(tmp_path, name, model)


def test_a_file_that_is_no_packet_is_refused(load, tmp_path):
    (tmp_path / "packets").mkdir()
    save_file({"k.0": np.zeros(3)}, packet_path(tmp_path, NAME))
    with pytest.raises(store.Damaged, match=NAME):
        packet_file.verify(tmp_path, NAME, load())
    with pytest.raises(FileNotFoundError, match="build_packets"):
        packet_file.verify(tmp_path, "absent", load())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "0" * 64, "another model: .*, not 0000000000000000…"),
        ("tokenizer", "x", "another tokenizer: .*, not x"),
        ("template", "x", "another template: none, not x"),
        ("adapter", "f" * 64, "another adapter: none, not ffffffffffffffff…"),
        ("dtype", "bfloat16", "another dtype: float32, not bfloat16"),
        ("rope", Rope(5e5), 'another rope: .*10000.0.*, not .*"theta": 500000.0'),
    ],
)
def test_another_maker_is_refused_by_name_and_nothing_is_touched(
    load, tmp_path, field, value, message
):
    model = load()
    (wanted,) = put(tmp_path, model, None, ids(0, 20))
    with store.writing(tmp_path) as writer:
        writer.provenance(wanted[1])
        writer.document(wanted[1], "a", Entry(wanted[0]))
    before = tree(tmp_path)
    other = dataclasses.replace(wanted[1], **{field: value})
    for read in (
        lambda: packet_file.load(tmp_path, [(wanted[0], other)], model),
        lambda: store.find(tmp_path, other, ["a"]),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read()
        assert str(error.value).count("another ") == 1  # the others agree
    assert tree(tmp_path) == before
    assert packet_file.packet_name(other, ids(0, 20), 20) != wanted[0]


# ---- documents


def test_documents_are_found_by_any_id(tmp_path):
    names = ["a", "A", "https://x.org/?q=1&b=../..", "x" * 5000]
    names += ["日本", "../packets", "made_by", "."]
    with store.writing(tmp_path) as writer:
        writer.provenance(NAMED)
        for i, id in enumerate(names):
            writer.document(NAMED, id, Entry(f"packet{i}"))
    found = store.find(tmp_path, NAMED, names[::-1])
    assert [e.packet for e in found] == [f"packet{i}" for i in reversed(range(len(names)))]
    (folder,) = (tmp_path / "documents").iterdir()
    assert len(list(folder.iterdir())) == len(names) + 1


def test_an_id_points_to_its_last_packet(tmp_path):
    for name in ("old", "new"):
        with store.writing(tmp_path) as writer:
            writer.provenance(NAMED)
            writer.document(NAMED, "a", Entry(name))
    assert store.find(tmp_path, NAMED, ["a"]) == [Entry("new")]


def test_unknown_documents_list_what_there_is_closest_first(tmp_path):
    with store.writing(tmp_path) as writer:
        writer.provenance(NAMED)
        for id in ("whales", "ferry-12", "ferries", *(f"zz{i}" for i in range(30))):
            writer.document(NAMED, id, Entry("x"))
    with pytest.raises(ValueError) as error:
        store.find(tmp_path, NAMED, ["whales", "fery-12"])
    assert "no document 'fery-12'. It has ferry-12, ferries, " in str(error.value)
    assert str(error.value).endswith(" and 13 more.") and "'whales'" not in str(error.value)
    with pytest.raises(ValueError, match="no document 'a'. It has none"):
        store.find(tmp_path, dataclasses.replace(NAMED, adapter="x"), ["a"])


def test_ids_are_checked_without_a_model(tmp_path):
    with store.writing(tmp_path) as writer:
        for provenance in (NAMED, dataclasses.replace(NAMED, adapter="x")):
            writer.provenance(provenance)
            writer.document(provenance, f"of {provenance.adapter}", Entry("packet"))
    store.check_ids(tmp_path, ["of none", "of x"])
    with pytest.raises(ValueError, match=r"no document 'off x'. It has of x, of none\.$"):
        store.check_ids(tmp_path, ["of none", "off x"])
    with pytest.raises(FileNotFoundError, match="no store .*absent"):
        store.check_exists(tmp_path / "absent")


def test_a_stray_file_and_a_build_that_was_only_begun_count_for_nothing(tmp_path):
    begun = dataclasses.replace(NAMED, dtype="float64")
    with store.writing(tmp_path) as writer:
        for provenance in (NAMED, begun):
            writer.provenance(provenance)
        writer.document(NAMED, "a", Entry("packet"))
        writer.document(begun, None, Entry("preamble"))
    (tmp_path / "documents" / ".DS_Store").write_text("left by a file manager")
    store.check_key(tmp_path, None)
    store.check_ids(tmp_path, ["a"])
    assert store.resolved_dtype(tmp_path, "auto") == NAMED.dtype


@pytest.mark.parametrize(
    ("documents", "error"),
    [("ab", "not the text 'ab'"), ([1], "give '1'"), (["a\udce9"], "byte e9 after 'a'")],
)
def test_what_is_no_list_of_ids_is_refused(documents, error):
    with pytest.raises(ValueError, match=error):
        store.as_ids(documents)
    assert store.as_ids(map(str, [1, 2])) == ("1", "2")


def test_names_are_in_messages_and_in_no_identity(tmp_path):
    with store.writing(tmp_path) as writer:
        writer.provenance(NAMED, Names("big", "none"))
        writer.document(NAMED, "a", Entry("packet"))
    other = dataclasses.replace(NAMED, adapter="f" * 64, dtype="float64")
    message = r"another adapter: none, not mine \(f{16}…\) and another dtype: "
    with pytest.raises(ValueError, match=message):
        store.find(tmp_path, other, ["a"], Names("small", "mine"))
    # What differs with the model is not named.
    other = dataclasses.replace(other, model="0" * 64)
    with pytest.raises(ValueError, match=r"another model: big \(m{16}…\), not small \(0{16}…\)\. "):
        store.find(tmp_path, other, ["a"], Names("small", "mine"))
    assert store.find(tmp_path, NAMED, ["a"], Names("renamed", "x")) == [Entry("packet")]


def test_a_store_is_listed_with_what_is_wrong_in_it(load, tmp_path):
    model = load()
    packets = put(tmp_path, model, adapter_of(model), ids(0, 20), ids(1, 30), ids(2, 9))
    with store.writing(tmp_path) as writer:
        writer.provenance(packets[0][1], Names("tiny", "mine", "chat"))
        for id, (name, provenance) in zip("cba", packets, strict=True):
            writer.document(provenance, id, Entry(name))
    broken, gone = (packet_path(tmp_path, packets[i][0]) for i in (1, 2))
    broken.write_bytes(b"x" + broken.read_bytes()[1:])
    gone.unlink()
    rows = contents.read(tmp_path)
    assert [(r.id, r.tokens, r.problem) for r in rows] == [
        ("a", 0, "missing"),
        ("b", 0, "damaged"),
        ("c", 20, ""),
    ]
    assert rows[2].num_bytes == packet_path(tmp_path, packets[0][0]).stat().st_size
    assert {(r.names, r.dtype) for r in rows} == {(Names("tiny", "mine", "chat"), "float32")}
    assert store.ids(tmp_path, packets[0][1]) == ["a", "b", "c"]


def test_a_damaged_entry_is_refused(tmp_path):
    with store.writing(tmp_path) as writer:
        writer.provenance(NAMED)
        writer.document(NAMED, "a", Entry("x"))
        writer.document(NAMED, "b", Entry("y"))
    entries = {json.loads(p.read_text()).get("id"): p for p in tmp_path.glob("documents/*/*.json")}
    for text in ("", "{", "[]", '{"id": "a"}', '{"packet": "x"}', entries["b"].read_text()):
        entries["a"].write_text(text)
        with pytest.raises(store.Damaged, match=hashlib.sha256(b"a").hexdigest()):
            store.find(tmp_path, NAMED, ["a"])
