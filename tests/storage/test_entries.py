"""Entries of a store: a packet is the one that its document was built with, or it is refused."""

import dataclasses
import hashlib
import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from kvpacket_jax.packets.packet import build_packets, provenance_of
from kvpacket_jax.storage import contents, packet_file, store, store_key
from kvpacket_jax.storage.packet_file import Entry, packet_path
from tests.support.corpus import tree


def ids(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def with_seal(path, arrays: dict, manifest: dict) -> None:
    """A packet's file that agrees with itself."""
    arrays = {n: np.ascontiguousarray(a) for n, a in arrays.items()}
    sums = {n: hashlib.sha256(a.view(np.uint8)).hexdigest() for n, a in arrays.items()}
    text = json.dumps(manifest | {"arrays": sums}, sort_keys=True, separators=(",", ":"))
    save_file(arrays | {packet_file.SEAL: np.zeros(32, np.uint8)}, path, {"manifest": text})
    with path.open("r+b") as file:
        packet_file._seal(file)


def forged(path, change) -> None:
    """The packet with its arrays changed, in a file that agrees with itself and with its name."""
    with safe_open(path, framework="numpy") as file:
        manifest = json.loads(file.metadata()["manifest"])
    manifest.pop("arrays")
    arrays = load_file(path)
    arrays.pop(packet_file.SEAL)
    with_seal(path, change(arrays), manifest)


def add(model, folder, key=None, *documents):
    """Documents d0, d1, … with their packets; the provenance and the entries."""
    provenance = provenance_of(model, None)
    with store.writing(folder, key) as writer:
        writer.provenance(provenance)
        entries = [writer.place(writer.prepare(p)) for p in build_packets(model, None, documents)]
        for i, entry in enumerate(entries):
            writer.document(provenance, f"d{i}", entry)
    return provenance, entries


def read(model, folder, ids, key=None):
    provenance = provenance_of(model, None)
    entries = store.find(folder, provenance, ids, key=key)
    wanted = [packet_file.Wanted(e.packet, provenance, e.seal) for e in entries]
    return packet_file.load(folder, wanted, model)


def test_a_forged_packet_is_refused_and_built_again(model, tmp_path):
    provenance, (entry,) = add(model, tmp_path, None, ids(0, 9))
    path = packet_path(tmp_path, entry.packet)
    forged(path, lambda arrays: {n: a + 1 for n, a in arrays.items()})
    seal = packet_file.verify(tmp_path, entry.packet, model)  # by itself it is sound
    for look in (
        lambda: read(model, tmp_path, ["d0"]),
        lambda: packet_file.read_manifest(tmp_path, *entry),
        lambda: store.Vouchers(tmp_path, provenance).check(["d0"], Entry(entry.packet, seal)),
    ):
        with pytest.raises(store.Damaged, match=entry.packet):
            look()
    (row,) = contents.read(tmp_path)
    assert row.problem == "damaged"
    add(model, tmp_path, None, ids(0, 9))
    assert read(model, tmp_path, ["d0"])


def test_an_entry_that_points_elsewhere_is_refused(model, tmp_path):
    _, (one, other) = add(model, tmp_path, None, ids(0, 9), ids(1, 9))
    (path,) = tmp_path.glob(f"documents/*/{hashlib.sha256(b'd0').hexdigest()}.json")
    path.write_text(path.read_text().replace(one.packet, other.packet))
    with pytest.raises(store.Damaged, match=other.packet):
        read(model, tmp_path, ["d0"])


def test_a_flipped_letter_in_an_entry_is_refused_or_changes_what_it_says(model, tmp_path):
    provenance, (entry,) = add(model, tmp_path, None, ids(0, 9))
    (path,) = tmp_path.glob(f"documents/*/{hashlib.sha256(b'd0').hexdigest()}.json")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            (found,) = store.find(tmp_path, provenance, ["d0"])
        except store.Damaged:
            continue
        # Its packet has another seal, or there is no such packet.
        assert found != entry and found.seal
    path.write_text(json.dumps({"id": "d0", "packet": entry.packet}))  # an earlier version's
    assert store.find(tmp_path, provenance, ["d0"]) == [Entry(entry.packet)]


def test_a_store_of_an_earlier_version_is_read_as_it_is(model, tmp_path):
    add(model, tmp_path, None, ids(0, 9))
    (path,) = tmp_path.glob("documents/*/provenance.json")
    fields = json.loads(path.read_text())
    for gone in ("sha256", "names"):  # names came before digests
        del fields[gone]
        path.write_text(json.dumps(fields))
        assert store.resolved_dtype(tmp_path, "auto") == "float32"
        assert [(row.id, row.problem) for row in contents.read(tmp_path)] == [("d0", "")]
    for change in ({"dtype": "bfloat16"}, {"sha257": "0" * 64}, {"names": {"model": 5}}):
        path.write_text(json.dumps(fields | change))
        assert store.resolved_dtype(tmp_path, "auto") == "auto"
        (row,) = contents.read(tmp_path)
        assert (row.id, row.problem) == ("d0", "provenance.json damaged")
    path.unlink()  # which is no empty store
    assert [row.problem for row in contents.read(tmp_path)] == ["provenance.json damaged"]
    path.write_text(json.dumps(fields))
    (entry,) = (p for p in path.parent.glob("*.json") if p != path)
    entry.write_text("{")
    (row,) = contents.read(tmp_path)
    assert row.problem == "entry damaged" and entry.name.startswith(row.id.removesuffix("…"))


KEY, OTHER = b"k" * 32, b"o" * 32


def test_with_a_key_only_what_it_signed_is_read(model, tmp_path):
    provenance, (one, other) = add(model, tmp_path, KEY, ids(0, 9), ids(1, 9))
    assert len(read(model, tmp_path, ["d0", "d1"], KEY)) == 2
    assert len(read(model, tmp_path, ["d0", "d1"])) == 2  # without one nothing is asked of them
    (path,) = tmp_path.glob(f"documents/*/{hashlib.sha256(b'd0').hexdigest()}.json")
    whole = json.loads(path.read_text())
    moved = {"packet": other.packet, "seal": other.seal}
    for change in (moved, {"seal": ""}, {"hmac": "x"}, {"hmac": None}, {"hmac": "\ud800"}):
        path.write_text(json.dumps(whole | change))
        refusal = f"entry of document 'd0' is .* signed with another key, or was changed.*{path}"
        with pytest.raises(store.Damaged, match=refusal):
            read(model, tmp_path, ["d0"], KEY)
        rows = contents.read(tmp_path, KEY)
        assert [row.problem for row in rows] == [contents.UNSIGNED, ""]
    path.write_text(json.dumps(whole))
    for key, problem in ((KEY, ""), (None, ""), (OTHER, contents.UNSIGNED)):
        assert [row.problem for row in contents.read(tmp_path, key)] == [problem] * 2
    with pytest.raises(store.Damaged, match="signed with another key"):
        read(model, tmp_path, ["d0"], OTHER)
    assert store.have_signatures(tmp_path, ["d2", "d1"])
    assert not store.have_signatures(tmp_path, ["d2"])
    assert all(row.has_signature for row in contents.read(tmp_path))
    # Signed by another, or by nobody: built again.
    for key, vouched in ((KEY, True), (OTHER, False)):
        vouchers = store.Vouchers(tmp_path, provenance, key)
        if vouched:
            vouchers.check(["d0"], one)
        else:
            with pytest.raises(store.Damaged, match="no entry that is signed with the key"):
                vouchers.check(["d0"], one)
    with pytest.raises(store.Damaged, match="vouched for by nobody"):
        store.find_preamble(tmp_path, provenance, one.packet, KEY)
    assert store.find_preamble(tmp_path, provenance, "old") == Entry("old")


@pytest.mark.parametrize("key", [None, KEY])
def test_any_document_of_a_packet_vouches_for_it(model, tmp_path, key):
    provenance, (entry, other) = add(model, tmp_path, key, ids(0, 9), ids(1, 9))
    vouchers = store.Vouchers(tmp_path, provenance, key)
    vouchers.check(["new"], entry)
    with store.writing(tmp_path, key) as writer:  # of the packet before it was built again
        writer.document(provenance, "old", entry._replace(seal="0" * 64))
    vouchers.check(["old"], entry)
    for wrong in (entry._replace(seal=other.seal), other._replace(seal="0" * 64)):
        with pytest.raises(store.Damaged, match="its documents' entries"):
            vouchers.check(["d0", "d1"], wrong)


def test_verify_refuses_what_load_refuses(model, tmp_path):
    _, (entry,) = add(model, tmp_path, None, ids(0, 9))
    path = packet_path(tmp_path, entry.packet)
    whole = path.read_bytes()
    changes = {
        "one layer less": lambda a: {n: x for n, x in a.items() if not n.endswith(".1")},
        "fewer heads": lambda a: {n: x[:, :1] for n, x in a.items()},
        "heads for dims": lambda a: {n: x.swapaxes(1, 2) for n, x in a.items()},
        "one more": lambda a: a | {"z.0": a["k.0"]},
        "one row": lambda a: {n: x[:1] for n, x in a.items()},
        "other heads": lambda a: a | {"k.0": a["k.0"][:, :1]},
        "dtype": lambda a: {n: x.astype(np.float16) for n, x in a.items()},
        "flat": lambda a: {n: x.reshape(len(x), -1) for n, x in a.items()},
    }
    wanted = [(entry.packet, provenance_of(model, None))]
    for change in changes.values():
        path.write_bytes(whole)
        forged(path, change)
        with pytest.raises(store.Damaged, match=entry.packet):
            packet_file.load(tmp_path, wanted, model)
        with pytest.raises(store.Damaged, match=entry.packet):
            packet_file.verify(tmp_path, entry.packet, model)


def test_a_crafted_packet_is_refused_in_a_line(model, tmp_path):
    provenance, (entry,) = add(model, tmp_path, None, ids(0, 9))
    path = packet_path(tmp_path, entry.packet)
    arrays = load_file(path)
    arrays.pop(packet_file.SEAL)
    with safe_open(path, framework="numpy") as file:
        manifest = json.loads(file.metadata()["manifest"])
    del manifest["arrays"]
    without = [{k: v for k, v in manifest.items() if k != name} for name in manifest]
    strange = (None, -1, "x", [None], {"a": 1}, 2**40)
    wrong = [
        manifest | {name: value} for name in ("length", "tokens", "dtype") for value in strange
    ]
    for fields in [*without, *wrong, {}]:
        name = packet_file.digest(fields)  # the entry of a store without a key may name it
        with_seal(packet_path(tmp_path, name), arrays, fields)
        with pytest.raises(ValueError, match=name) as error:
            packet_file.load(tmp_path, [(name, provenance)], model)
        assert "\n" not in str(error.value)


def test_the_bytes_that_are_hashed_are_those_that_are_used(model, tmp_path, monkeypatch):
    _, (entry,) = add(model, tmp_path, KEY, ids(0, 9))
    (right,) = read(model, tmp_path, ["d0"], KEY)
    path, whole, other = packet_path(tmp_path, entry.packet), tmp_path / "whole", tmp_path / "other"
    shutil.copy(path, whole)
    forged(path, lambda arrays: {n: a + 1 for n, a in arrays.items()})
    seal = packet_file.verify(tmp_path, entry.packet, model)
    other.write_bytes(path.read_bytes().replace(bytes.fromhex(seal), bytes.fromhex(entry.seal)))
    original = pathlib.Path.open

    def put(file):
        shutil.copy(file, tmp_path / "now")
        (tmp_path / "now").replace(path)

    def swapped(self, *args, **options):
        """The packet is whole while it is opened, and at no other time."""
        put(whole)
        opened = original(self, *args, **options)
        put(other)
        return opened

    put(other)
    wanted = [packet_file.Wanted(entry.packet, provenance_of(model, None), entry.seal)]
    monkeypatch.setattr(pathlib.Path, "open", swapped)
    (found,) = packet_file.load(tmp_path, wanted, model)
    np.testing.assert_array_equal(found.cache.k[0], right.cache.k[0])


def test_a_packet_that_is_not_finite_is_refused(model, tmp_path):
    (packet,) = build_packets(model, None, [ids(0, 9)])
    k = packet.cache.k
    cache = packet.cache._replace(k=(k[0].at[0, 3, 0, 0].set(np.nan), *k[1:]))
    bad = dataclasses.replace(packet, cache=cache)
    with store.writing(tmp_path) as writer, pytest.raises(ValueError, match="keys of layer 0"):
        writer.place(writer.prepare(bad))
    assert tree(tmp_path) == {}


def test_a_key_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(store_key.VARIABLE, raising=False)
    assert store_key.read() is None
    monkeypatch.setenv(store_key.VARIABLE, "e" * 20)
    (tmp_path / "key").write_bytes(KEY + b"\n")
    assert (store_key.read(), store_key.read(tmp_path / "key")) == (b"e" * 20, KEY)
    (tmp_path / "key").write_bytes(b"short\n")
    with pytest.raises(ValueError, match="5 bytes, not at least 16"):
        store_key.read(tmp_path / "key")
    with pytest.raises(FileNotFoundError, match="absent"):
        store_key.read(tmp_path / "absent")
