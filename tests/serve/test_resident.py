"""Resident packets: read once, never another than was asked for, and no more than fit."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

import kvpacket_jax as kvp
from kvpacket_jax.methods import METHODS
from kvpacket_jax.serve import resident as resident_lib
from kvpacket_jax.serve.resident import Resident
from kvpacket_jax.storage import packet_file

DOCUMENTS = {"ferry": "the ferry leaves at seven", "bus": "the bus leaves at noon"}
MADE_WITH = dict(adapter="none", template="completion")


@pytest.fixture
def store(model, tmp_path):
    store = kvp.Store(tmp_path / "packets", model, **MADE_WITH)
    store.add(DOCUMENTS)
    return store


@pytest.fixture
def reads(monkeypatch) -> list[packet_file.Wanted]:
    """The packets whose files are read."""
    read, load = [], packet_file.load

    def noted(folder, wanted, model):
        read.extend(wanted)
        return load(folder, wanted, model)

    monkeypatch.setattr(packet_file, "load", noted)
    return read


@pytest.fixture
def wanted(store, reads) -> list[packet_file.Wanted]:
    """The packets of the store as sessions ask for them, the preamble's first."""
    kvp.Store(store.folder, store.model, **MADE_WITH).ask("When?", list(DOCUMENTS), 2)
    asked = list(reads)
    reads.clear()
    return asked


def remove_documents(store, wanted):
    for packet in wanted[1:]:
        packet_file.packet_path(store.folder, packet.name).unlink()


def test_documents_are_read_once(store, reads):
    first = store.ask("When?", ["ferry", "bus"], 4)
    number = len(reads)
    assert number == len(set(reads)) > 1
    assert store.ask("When?", ["ferry", "bus"], 4) == first
    other = store.ask("When?", ["bus", "ferry"], 4)
    assert len(reads) == number
    fresh = kvp.Store(store.folder, store.model, **MADE_WITH)
    assert fresh.ask("When?", ["bus", "ferry"], 4) == other


def test_what_was_verified_is_right_whatever_becomes_of_its_file(store, wanted):
    first = store.ask("When?", ["ferry"], 4)
    remove_documents(store, wanted)
    assert store.ask("When?", ["ferry"], 4) == first
    with pytest.raises(FileNotFoundError, match="'bus'"):
        store.ask("When?", ["ferry", "bus"], 4)


def test_nothing_stays_where_nothing_may(model, store, wanted):
    forgetful = kvp.Store(store.folder, model, **MADE_WITH, resident_bytes=0)
    forgetful.ask("When?", ["ferry"], 4)
    remove_documents(store, wanted)
    with pytest.raises(FileNotFoundError, match="'ferry'"):
        forgetful.ask("When?", ["ferry"], 4)
    with pytest.raises(ValueError, match="resident_bytes is -1"):
        kvp.Store(store.folder, model, **MADE_WITH, resident_bytes=-1)


def test_a_new_text_replaces_a_resident_one(store, model, tmp_path):
    store.ask("When?", ["ferry"], 4)
    store.add({"ferry": "no ferry leaves today, nor any day of this long winter"})
    elsewhere = kvp.Store(tmp_path / "elsewhere", model, **MADE_WITH)
    elsewhere.add({"ferry": "no ferry leaves today, nor any day of this long winter"})
    question = "When does it leave?"
    assert store.ask(question, ["ferry"], 6) == elsewhere.ask(question, ["ferry"], 6)


def test_the_longest_unused_goes_first(store, wanted, reads):
    ferry, bus = wanted[-2:]
    (packet,) = packet_file.load(store.folder, [ferry], store.model)
    resident = Resident(2 * resident_lib._size(packet))
    get = lambda w: resident(store.folder, [w], store.model)[0]  # noqa: E731
    get(ferry), get(bus), get(ferry)
    reads.clear()
    get(wanted[0])
    assert reads == [wanted[0]]
    get(ferry)
    assert len(reads) == 1
    get(bus)
    assert reads[1:] == [bus]


def test_what_was_made_goes_before_packets(store, wanted, reads):
    (packet,) = packet_file.load(store.folder, wanted[-1:], store.model)
    resident, made = Resident(3 * resident_lib._size(packet)), []
    get = lambda w: resident(store.folder, [w], store.model)[0]  # noqa: E731
    make = lambda: made.append(0) or packet  # noqa: E731
    read = resident.read
    get(wanted[-1]), read("a", make), read("b", make), read("a", make)
    assert len(made) == 2
    get(wanted[-2])  # "b" goes, which was used before "a"
    reads.clear()
    get(wanted[-1]), get(wanted[-2]), read("a", make)
    assert (reads, len(made)) == ([], 2)
    read("b", make)
    assert len(made) == 3
    read("large", lambda: (packet,) * 4)
    get(wanted[-1]), get(wanted[-2])
    assert reads == []
    none = Resident(0)
    assert none.read("a", lambda: 1) == 1 and none.read("a", lambda: 2) == 2


@pytest.mark.parametrize("keep", [0.5, 0.25])
def test_memory_falls_with_what_a_packet_stores(model, tmp_path, wanted, keep):
    """Each of the longest that the model reads, and one of a page and a bit."""
    store = kvp.Store(tmp_path / "small", model, **MADE_WITH, compress="knorm", keep=keep)
    texts = {"long": "the ferry leaves at seven " * 30, "odd": "the bus leaves at noon " * 21}
    store.add(texts)
    store.ask("When?", list(texts), 2)
    packets = [p for p in store._resident._packets.values() if p.kept is not None]
    assert len(packets) == len(texts)
    for packet in packets:
        assert packet.kept == pytest.approx(keep * packet.length, abs=1)
        slot = (packet.cache.k[0].nbytes / packet.cache.num_slots) * 2 * len(packet.cache.k)
        held = sum(x.nbytes for x in (*packet.cache.k, *packet.cache.v))
        assert packet.kept * slot <= held <= 1.06 * packet.kept * slot + 15 * slot


def test_packets_side_by_side_go_before_what_takes_long_to_make(store, wanted):
    (packet,) = packet_file.load(store.folder, wanted[-1:], store.model)
    resident, made = Resident(2 * resident_lib._size(packet)), []
    read = lambda: resident.read("a", lambda: made.append("read") or packet)  # noqa: E731
    lay = lambda key: resident.laid(key, lambda: made.append(key) or packet)  # noqa: E731
    read(), lay("b"), lay("b"), read()
    assert made == ["read", "b"]
    lay("c"), read()
    assert made == ["read", "b", "c"]
    resident(store.folder, wanted[-1:], store.model)
    read(), lay("c"), read()
    assert made == ["read", "b", "c", "c"]


@pytest.mark.parametrize("share", [0.5, 2])
def test_threads_share_it(store, wanted, share):
    """Half of the packets fit, or all of them."""
    expected = packet_file.load(store.folder, wanted, store.model)
    size = sum(map(resident_lib._size, expected))
    resident, wrong = Resident(int(size * share)), []

    def ask(_):
        packets = resident(store.folder, wanted, store.model)
        for packet, right in zip(packets, expected, strict=True):
            same = jax.tree.map(np.array_equal, packet.cache, right.cache)
            wrong.extend(x for x in jax.tree.leaves(same) if not x)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(40)))  # raises what a thread raised
    assert not wrong
    kept = list(resident._packets.values())
    assert 0 < len(kept) <= len(expected)
    assert sum(map(resident_lib._size, kept)) == resident._bytes <= size * share


def test_a_document_may_be_named_twice_and_read_in_full(store):
    twice = store.ask("When?", ["ferry", "ferry"], 4)
    assert store.ask("When?", ["ferry", "ferry"], 4) == twice
    full = store.ask("When?", ["ferry", "bus"], 4, method="full_recompute")
    fresh = kvp.Store(store.folder, store.model, **MADE_WITH)
    assert fresh.ask("When?", ["ferry", "bus"], 4, method="full_recompute") == full


def test_packets_are_laid_side_by_side_once(store, monkeypatch):
    method, made = METHODS["kv_packet"], []
    arrange = method.arrange
    noted = lambda *args: made.append(args) or arrange(*args)  # noqa: E731
    monkeypatch.setattr(method, "arrange", noted)
    first = store.ask("When?", ["ferry", "bus"], 4)
    assert store.ask("When?", ["ferry", "bus"], 4) == first and len(made) == 1
    store.ask("When?", ["bus", "ferry"], 4)
    assert len(made) == 2
    store.add({"ferry": "no ferry leaves today"})
    changed = store.ask("When?", ["ferry", "bus"], 4)
    fresh = kvp.Store(store.folder, store.model, **MADE_WITH, resident_bytes=0)
    assert fresh.ask("When?", ["ferry", "bus"], 4) == changed and len(made) == 4


def test_documents_are_read_in_full_once(store, monkeypatch):
    method, made = METHODS["full_recompute"], []
    read = method.shared_context
    noted = lambda *args: made.append(args) or read(*args)  # noqa: E731
    monkeypatch.setattr(method, "shared_context", noted)
    first = store.ask("When?", ["ferry", "bus"], 4, recompute_below=1)
    assert first.reread and len(made) == 1
    assert store.ask("When?", ["ferry", "bus"], 4, recompute_below=1) == first
    full = store.ask("When?", ["ferry", "bus"], 4, method="full_recompute")
    assert full.text == first.text and len(made) == 1
    assert store.ask("When?", ["bus", "ferry"], 4, recompute_below=1).reread and len(made) == 2
    store.add({"ferry": "no ferry leaves today"})
    assert store.ask("When?", ["ferry", "bus"], 4, recompute_below=1).reread and len(made) == 3
    forgetful = kvp.Store(store.folder, store.model, **MADE_WITH, resident_bytes=0)
    for number in (4, 5):
        forgetful.ask("When?", ["ferry"], 4, recompute_below=1)
        assert len(made) == number
