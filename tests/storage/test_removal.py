"""What is taken out of a store: documents, and packets that none has; nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import models
from kvpacket_jax import Store
from kvpacket_jax.serve import build
from kvpacket_jax.storage import removal
from kvpacket_jax.storage.packet_file import Damaged

ROOT = Path(__file__).parents[2]
TEXTS = {"a": "the ferry leaves", "b": "the ferry leaves", "c": "the bus is late"}


@pytest.fixture
def model(byte_model):
    return models.load(str(byte_model), "float32")


def store_in(folder, model, **made) -> Store:
    return Store(folder, model, **{"adapter": "none", "template": "completion"} | made)


def packets(folder) -> set[str]:
    return {path.name for path in folder.glob("packets/*.safetensors")}


def test_a_superseded_packet_is_pruned_and_all_others_stay(model, tmp_path):
    made = [{}, {"compress": "knorm"}, {"adapter": "primer", "primer": "similar:1"}]
    stores = [store_in(tmp_path, model, **way) for way in made]
    for store in stores:
        store.add(TEXTS)
    there = packets(tmp_path)
    assert removal.prune(tmp_path) == (0, 0, 0)
    stores[0].add({"c": "the bus is early"})
    superseded = there | packets(tmp_path)
    expected = stores[0].ask("When?", ["a", "c"], 4)
    found = removal.prune(tmp_path)
    assert (found.documents, found.packets) == (0, 1) and found.num_bytes > 0
    assert len(superseded - packets(tmp_path)) == 1
    assert superseded - packets(tmp_path) <= there  # the old one
    for store in stores:
        assert store.add(TEXTS if store is not stores[0] else {"a": TEXTS["a"]}).built == []
    fresh = store_in(tmp_path, model)  # nothing is resident in it
    assert fresh.ask("When?", ["a", "c"], 4) == expected


def test_a_document_is_removed_from_all_its_builds(model, tmp_path):
    stores = [store_in(tmp_path, model, **way) for way in ({}, {"compress": "knorm"})]
    for store in stores:
        store.add(TEXTS)
    number = len(packets(tmp_path))
    assert removal.remove(tmp_path, ["a"])[:2] == (1, 0)  # b has the same text, and keeps it
    stores[0].remove(["b"])
    assert len(packets(tmp_path)) == number - 2
    for store in stores:
        assert store.documents() == ["c"] and store.ask("When?", ["c"], 4).documents == ("c",)
        with pytest.raises(ValueError, match="no document 'a'. It has c"):
            store.ask("When?", ["a"])


def test_nothing_is_removed_where_something_is_wrong(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no store"):
        removal.prune(tmp_path / "absent")
    assert removal.prune(tmp_path) == (0, 0, 0)
    store = store_in(tmp_path, model)
    store.add(TEXTS)
    store.add({"a": "another text", "b": "another text"})  # leaves a packet to be pruned
    there = packets(tmp_path)
    for ids, message in ((["a", "d"], "no document 'd'"), ("ab", "a list of ids"), ([], "No doc")):
        with pytest.raises(ValueError, match=message):
            store.remove(ids)
    entry = next(p for p in tmp_path.glob("documents/*/*.json") if '"id": "c"' in p.read_text())
    text = entry.read_text()
    name = json.loads(text)["packet"]
    entry.write_text(text.replace(name, name[::-1]))  # a packet that is not there
    with pytest.raises(FileNotFoundError, match=f"Document 'c': .*{name[::-1]}.* launch.store rm"):
        removal.prune(tmp_path)
    entry.write_text(text[:-5])
    for take in (lambda: removal.prune(tmp_path), lambda: removal.remove(tmp_path, ["a"])):
        with pytest.raises(Damaged, match=f"{entry.name} is damaged"):
            take()
    assert (packets(tmp_path), store.documents()) == (there, ["a", "b"])
    assert removal.remove(tmp_path, ["c"])[:2] == (1, 2)  # itself may be damaged


def test_a_preamble_without_an_entry_stays(model, tmp_path):
    store_in(tmp_path, model).add(TEXTS)
    (preamble,) = tmp_path.glob("documents/*/preamble.entry")
    preamble.unlink()  # as earlier versions left it, and shards do that are not the preamble's
    assert removal.prune(tmp_path) == (0, 0, 0)
    assert removal.remove(tmp_path, ["c"])[:2] == (1, 1)
    fresh = store_in(tmp_path, model)
    assert fresh.ask("When?", ["a"], 4).documents == ("a",)
    (preamble.parent / "provenance.json").unlink()
    preamble.parent.rmdir()
    assert removal.prune(tmp_path) == (0, 0, 0)


def test_a_build_never_points_to_what_was_removed_meanwhile(model, tmp_path, monkeypatch):
    store = store_in(tmp_path, model)
    store.add(TEXTS)
    store.add({"c": "the bus is early"})
    written = build._write

    def late(writer, look, provenance, item, *rest):
        if item.ids:  # the preamble is written before documents' packets are looked for
            removal.prune(tmp_path)
        written(writer, look, provenance, item, *rest)

    monkeypatch.setattr(build, "_write", late)
    with pytest.raises(BlockingIOError, match="A build is under way in"):
        store.add({"c": TEXTS["c"]})
    # As if the build had begun just after it was looked for.
    monkeypatch.setattr(removal.partial, "under_way", lambda folder: [])
    with pytest.raises(FileNotFoundError, match="was removed while this build ran"):
        store.add({"c": TEXTS["c"]})
    monkeypatch.undo()
    assert store.ask("When?", ["c"], 4).documents == ("c",)
    assert store.add({"c": TEXTS["c"]}).built == ["c"]


def test_the_program_removes_and_says_what(byte_model, model, tmp_path):
    folder = tmp_path / "store"
    store_in(folder, model).add(TEXTS)

    def run(*flags: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "launch.store", *flags, f"--store={folder}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    removed = run("rm", "--documents=a,c")
    assert removed.returncode == 0, removed.stderr
    assert "Removed 2 documents and 1 packet that" in removed.stdout
    assert "Removed 0 packets" in run("prune").stdout
    assert run("ls").returncode == 0
    for wrong in (["rm"], ["prune", "--documents=b"], ["rm", "--documents=a"], ["remove"]):
        assert run(*wrong).returncode == 1
    assert store_in(folder, model).documents() == ["b"]
