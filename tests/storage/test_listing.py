"""What a store holds is listed by name, and summed without counting a packet twice."""

import json
import pathlib
import subprocess
import sys

import models
from kvpacket_jax.serve import Store
from kvpacket_jax.storage import contents, listing, removal
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


def test_verify_compares_what_ls_does_not_read(byte_model, tmp_path):
    made = [("none", None), ("primer", "knorm")]
    for adapter, compressor in made:  # the second has positions, and no preamble of its own
        model = models.load(str(byte_model), "float32")
        store = Store(tmp_path, model, adapter, "completion", compress=compressor)
        store.add({"a": "one", "b": "two two", "c": "one"})
    every = contents.read(tmp_path, every_byte=True)
    assert every == contents.read(tmp_path) and not any(row.problem for row in every)
    command = [sys.executable, "-m", "launch.store", "verify", f"--store={tmp_path}"]
    verified = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert verified.returncode == 0, verified.stderr
    assert "Every byte of them is as it was written." in " ".join(verified.stdout.split())
    for path in tmp_path.glob("packets/*.safetensors"):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[-40] ^= 1  # the last 32 are the seal
        path.write_bytes(flipped)
        assert not any(row.problem for row in contents.read(tmp_path))
        damaged = [row for row in contents.read(tmp_path, every_byte=True) if row.problem]
        assert {row.packet for row in damaged} == {path.stem}
        assert {row.problem for row in damaged} == {"damaged"}
        path.write_bytes(whole)
    path.write_bytes(flipped)
    verified = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert verified.returncode == 1 and "Every byte" not in verified.stdout, verified.stderr


def test_what_is_not_whole_is_counted_apart():
    names = Names("m", "a")
    documents = [
        StoredDocument("x", names, "float32", "p", 7, 2000),
        StoredDocument("y", names, "float32", "p", 7, 2000),
        StoredDocument("z", names, "float32", "q", 0, 0, "missing"),
    ]
    assert listing.total(documents) == (
        "Documents: 3. Packets: 1, of 7 tokens, 2 kB. 1 missing or damaged: launch.build_packets "
        "on the same input mends them."
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
