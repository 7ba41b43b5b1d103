"""Writing into a store: whole or not at all, and beside others who write."""

import dataclasses
import os
import resource
import signal
import threading
import time

import pytest

from kvpacket_jax.packets.packet import build_packets, provenance_of
from kvpacket_jax.storage import packet_file, store
from models.disk import partial
from tests.support.byte_model import ids
from tests.support.corpus import tree
from tests.support.stores import put


def test_what_a_killed_writer_left_is_removed_and_a_live_one_is_not(load, tmp_path):
    model = load()
    left = partial.name_for(tmp_path / "packets")
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"x")
    with store.writing(tmp_path) as writer:
        assert not left.exists()
        with store.writing(tmp_path) as other:
            packets = build_packets(model, None, [ids(0, 9), ids(1, 9)])
            names = [
                w.place(w.prepare(p)).packet for w, p in zip((writer, other), packets, strict=True)
            ]
        assert packet_file.packet_name(provenance_of(model, None), ids(0, 9), 9) == names[0]
        writer.place(writer.prepare(packets[1]))  # its folder outlived the other's
    assert [p.name for p in tmp_path.iterdir()] == ["packets"]
    for name in names:
        packet_file.verify(tmp_path, name, model)


def test_a_full_disk_is_an_oserror_and_leaves_nothing_under_its_name(load, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(OSError, match="could not be written"):
            put(tmp_path, load(), None, ids(0, 9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert tree(tmp_path) == {}


def test_a_compressed_packet_is_refused(load, tmp_path):
    model = load()
    (packet,) = build_packets(model, None, [ids(0, 9)])
    longer = dataclasses.replace(packet, length=packet.cache.num_slots + 1)
    with store.writing(tmp_path) as writer, pytest.raises(ValueError, match="compressed"):
        writer.place(writer.prepare(longer))


def test_a_damaged_maker_is_passed_over_and_written_anew(load, tmp_path):
    ((name, _),) = put(tmp_path, load(), None, ids(0, 9))
    with store.writing(tmp_path) as writer:
        writer.provenance(provenance_of(load(), None))
        writer.document(provenance_of(load(), None), "a", packet_file.Entry(name))
    (path,) = tmp_path.glob("documents/*/provenance.json")
    path.write_text("{")
    assert store.resolved_dtype(tmp_path, "auto") == "auto"
    with store.writing(tmp_path) as writer:
        writer.provenance(provenance_of(load(), None))
    assert store.resolved_dtype(tmp_path, "auto") == "float32"


def test_a_failed_write_leaves_nothing_under_its_name(load, tmp_path, monkeypatch):
    def full(fd):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        put(tmp_path, load(), None, ids(0, 9))
    assert tree(tmp_path) == {}


def test_only_one_of_all_writers_looks_and_places_at_a_time(tmp_path):
    inside = []
    with store.writing(tmp_path) as one, store.writing(tmp_path) as other:

        def enter():
            with other.alone():
                inside.append("other")

        thread = threading.Thread(target=enter)
        with one.alone():
            thread.start()
            time.sleep(0.2)
            inside.append("one")
        thread.join()
    assert inside == ["one", "other"]


def test_what_another_process_has_vouched_for_since_is_vouched_for(load, tmp_path):
    model, key = load(), b"k" * 32
    provenance = provenance_of(model, None)
    with store.writing(tmp_path, key) as writer:
        writer.provenance(provenance)
        packets = build_packets(model, None, [ids(0, 9), ids(1, 9)])
        first, second = (writer.place(writer.prepare(p)) for p in packets)
        writer.document(provenance, "a", first)
        vouchers = store.Vouchers(tmp_path, provenance, key)
        with pytest.raises(store.Damaged):
            vouchers.check(["c"], second)
        writer.document(provenance, "b", second)
        vouchers.check(["c"], second)
