"""What a store holds is listed by name, and summed without counting a packet twice."""

import json
import pathlib
import subprocess
import sys

import pytest

import models
from kvpacket_jax.serve import Store
from kvpacket_jax.storage import contents, entries, listing, packet_file, removal
from kvpacket_jax.storage.contents import StoredDocument
from kvpacket_jax.storage.provenance import Names

ROOT = pathlib.Path(__file__).parents[2]


def test_the_program_lists_a_store(byte_model, tmp_path):
    store = Store(tmp_path, models.load(str(byte_model), "float32"), "none", "completion")
    store.add({"a": "[/x] one", "b": "[/x] one", "c": "two"})
    command = [sys.executable, "-m", "launch.store", "ls", f"--store={tmp_path}"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert [row[0] for row in rows if "float32" in row] == ["a", "b", "c"]
    assert "Documents: 3. Packets: 2, of 15 tokens, " in listed.stdout
    assert "problem" not in listed.stdout and "signed" not in listed.stdout
    (tmp_path / "key").write_text("k" * 32)
    keyed = [*command, f"--store_key_file={tmp_path / 'key'}"]
    listed = subprocess.run(keyed, cwd=ROOT, capture_output=True, text=True)
    assert listed.stdout.count("not signed") == 5, listed.stderr  # a preamble, too
    assert "3 not signed with the key: launch.build_packets" in " ".join(listed.stdout.split())
    (preamble,) = tmp_path.glob("documents/*/preamble.entry")
    packet = tmp_path / "packets" / f"{json.loads(preamble.read_text())['packet']}.safetensors"
    for damaged, word in ((packet, "missing"), (preamble, "damaged")):
        damaged.write_text("{") if word == "damaged" else damaged.unlink()
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        text = " ".join(listed.stdout.split())
        assert listed.returncode == 1 and word in text and "Documents: 3. Packets: 2" in text
    command[-1] = "--store=absent"
    absent = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert absent.returncode == 1 and "There is no store absent" in absent.stderr


def run_verify(folder) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.store", "verify", f"--store={folder}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def built(byte_model, tmp_path):
    """A store of two builds: bare packets with a preamble, and compressed ones after a primer."""
    model = models.load(str(byte_model), "float32")
    for adapter, compressor in (("none", None), ("primer", "knorm")):
        store = Store(tmp_path, model, adapter, "completion", compress=compressor)
        store.add({"a": "one", "b": "two two", "c": "one"})
    return tmp_path


def problems(folder, every_byte: bool) -> dict[str, str]:
    rows = contents.read(folder, every_byte=every_byte)
    return {row.packet: row.problem for row in rows if row.problem}


def test_verify_compares_what_ls_does_not_read(built):
    assert contents.read(built, every_byte=True) == contents.read(built)
    for path in built.glob("packets/*.safetensors"):  # the preamble's is one of them
        whole = path.read_bytes()
        size = 8 + int.from_bytes(whole[:8], "little")
        arrays = json.loads(whole[8:size])
        del arrays["__metadata__"], arrays[packet_file.SEAL]
        for array in arrays.values():
            changed = bytearray(whole)
            changed[size + array["data_offsets"][0]] ^= 1
            path.write_bytes(changed)
            assert not problems(built, False)
            assert problems(built, True) == {path.stem: "damaged"}
        path.write_bytes(whole)
    verified = run_verify(built)
    assert verified.returncode == 0, verified.stderr
    assert "Every byte is as it was written." in " ".join(verified.stdout.split())
    path.write_bytes(changed)
    verified = run_verify(built)
    assert verified.returncode == 1 and "Every byte" not in verified.stdout, verified.stderr


def test_verify_reads_the_preamble_of_an_earlier_version_too(built):
    (entry,) = built.glob("documents/*/preamble.entry")
    name = json.loads(entry.read_text())["packet"]
    entry.unlink()
    assert not problems(built, True)
    path = built / "packets" / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    assert not problems(built, False) and problems(built, True) == {name: "damaged"}


def test_an_entry_of_another_build_s_packet_is_damaged(built):
    of_a = entries.file_name("a")
    one, other = built.glob(f"documents/*/{of_a}")
    one.write_bytes(other.read_bytes())
    assert list(problems(built, False).values()) == ["entry damaged"]


def test_what_cannot_be_read_is_listed(built):
    path = next(built.glob("packets/*.safetensors"))
    path.unlink()
    path.mkdir()
    assert problems(built, True)[path.stem] == "unreadable: Is a directory"


def test_what_is_not_whole_is_counted_apart():
    names = Names("m", "a")
    documents = [
        StoredDocument("x", names, "float32", "p", 7, 2000),
        StoredDocument("y", names, "float32", "p", 7, 2000),
        StoredDocument("z", names, "float32", "q", 0, 0, "missing"),
    ]
    assert listing.total(documents) == (
        "Documents: 3. Packets: 1, of 7 tokens, 2 kB. 1 missing or damaged: launch.build_packets "
        "with the same input and flags mends them."
    )
    for rows, columns in ((documents, ["problem", "tokens", "bytes"]), (documents[:2], ["bytes"])):
        shown = [column.header for column in listing.table(rows).columns]
        assert shown[-len(columns) :] == columns and ("problem" in shown) == ("problem" in columns)
    assert listing.total([]) == "No documents."


def test_superseded_packets_are_counted(byte_model, tmp_path):
    store = Store(tmp_path, models.load(str(byte_model), "float32"), "none", "completion")
    store.add({"a": "one", "b": "two"})
    total = lambda: listing.total(contents.read(tmp_path), removal.superseded(tmp_path))  # noqa: E731
    assert "refers to" not in total()
    store.add({"b": "three"})
    assert "1 more packet, " in total() and "that no document refers to: launch.store pr" in total()
    removal.prune(tmp_path)
    assert "refers to" not in total()


def test_an_older_text_of_another_build_is_named(byte_model, tmp_path):
    model = models.load(str(byte_model), "float32")
    made = [("none", None), ("none", "knorm"), ("primer", None)]
    stores = [Store(tmp_path, model, a, "completion", compress=c) for a, c in made]
    other = Store(tmp_path, model, "none", "completion_reasoning")  # it reads the same otherwise
    for store in (*stores, other):
        store.add({"a": "one", "b": "two"})
    total = lambda: listing.total(contents.read(tmp_path))  # noqa: E731
    assert "different texts" not in total()
    stores[1].add({"b": "three"})
    assert "Builds have different texts of b: an answer goes by the build" in total()
    for store in (stores[0], stores[2]):
        store.add({"b": "three"})
    assert "different texts" not in total()
