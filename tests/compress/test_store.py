"""Compressed packets on disk: what is read is what was written, smaller, or it is refused."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import kvpacket_jax as kvp
from kvpacket_jax.compress import COMPRESSORS, make
from kvpacket_jax.measure import memory
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.compose import compose
from kvpacket_jax.packets.packet import build_packets, provenance_of
from kvpacket_jax.storage import contents, packet_file, store
from kvpacket_jax.storage.packet_file import Entry, packet_path
from tests.support.byte_model import ids
from tests.support.corpus import text, write_corpus

ROOT = Path(__file__).parents[2]
EXACT = Buckets(min_packet=1, soft_tokens=0)


def put(folder, model, compressor, *documents, adapter=None, buckets=EXACT):
    """Packets, and what they are read by."""
    packets = build_packets(model, adapter, documents, buckets, compressor=compressor)
    made_by = provenance_of(model, adapter, compressor=compressor)
    with store.writing(folder) as writer:
        return packets, [(writer.place(writer.prepare(p)).packet, made_by) for p in packets]


def bits(packet) -> list[np.ndarray]:
    """All that a packet's slots hold."""
    cache, n = packet.cache, packet.slots
    k, v = ([np.asarray(x)[0, :n].view(np.uint8) for x in part] for part in (cache.k, cache.v))
    bias = [np.asarray(b)[0, :, :n] for b in (() if cache.bias is None else cache.bias)]
    return [*k, *v, *bias, np.asarray(cache.positions)[0, :n], np.asarray(cache.valid)[0]]


@pytest.mark.parametrize("name", ["snapkv", "zeromerge"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_read_is_what_was_written(load, tmp_path, name, dtype):
    model, documents = load(dtype), [ids(0, 20), ids(1, 30)]
    adapter = adapter_lib.init(jax.random.key(0), model.params["embedding"], 3, 2)
    built, wanted = put(tmp_path, model, make(name, 0.4), *documents, adapter=adapter)
    for scan in (False, True):
        reader = load(dtype, scan)
        found = packet_file.load(tmp_path, wanted, reader, EXACT)
        for packet, original in zip(found, built, strict=True):
            assert (packet.length, packet.slots) == (original.length, original.length * 4 // 10)
            assert packet.manifest == original.manifest
            assert (packet.cache.bias is None) == (name == "snapkv")
            assert isinstance(packet.cache.k, tuple) != scan
            for a, b in zip(bits(packet)[:-1], bits(original)[:-1], strict=True):
                np.testing.assert_array_equal(a, b)
    # Beside a whole packet, whose tokens count once each; its slots follow without a gap.
    (plain,) = build_packets(model, None, [ids(2, 9)], EXACT)
    packets = packet_file.load(tmp_path, wanted, model, EXACT)
    context, length = compose(model, [packets[1], plain, packets[0]], EXACT)
    places = [34] * packets[1].slots + [*range(35, 44)] + [68] * packets[0].slots
    seen = np.asarray(context.valid[0])
    assert length == 69 and np.asarray(context.positions[0])[seen].tolist() == places
    assert seen[: len(places)].all()
    if name == "zeromerge":
        bias = np.asarray(context.bias[0])[0][:, seen]
        own = [np.asarray(p.cache.bias[0])[0, :, : p.slots] for p in (packets[1], packets[0])]
        np.testing.assert_array_equal(bias, np.hstack([own[0], np.zeros((2, 9)), own[1]]))
        assert bias.max() > 0
    else:
        assert context.bias is None


@pytest.mark.parametrize("keep", [0.5, 0.25])
@pytest.mark.parametrize("spec", ["snapkv/window=8", "zeromerge"])
def test_memory_and_files_shrink_as_the_share_says(tiny, tmp_path, spec, keep):
    model, document = tiny("tiny_llama31"), ids(0, 512)
    (whole,), ((plain, _),) = put(tmp_path, model, None, document)
    (small,), ((name, _),) = put(tmp_path, model, make(spec, keep), document)
    expected = keep * memory.tree_bytes(whole.cache)
    assert memory.tree_bytes(small.cache) == pytest.approx(expected, rel=0.05)
    files = [packet_path(tmp_path, n) for n in (name, plain)]
    arrays = [sum(x.nbytes for x in load_file(path).values()) for path in files]
    assert arrays[0] == pytest.approx(keep * arrays[1], rel=0.05)
    # What is left are the headers, with the token ids and a digest of each array.
    headers = [f.stat().st_size - n for f, n in zip(files, arrays, strict=True)]
    assert headers[0] < headers[1] + 1024


def test_every_flipped_byte_is_refused(load, tmp_path):
    model = load()
    _, ((name, made_by),) = put(tmp_path, model, make("zeromerge", 0.25), ids(0, 24))
    path = packet_path(tmp_path, name)
    whole, rng = path.read_bytes(), random.Random(0)
    start = 8 + int.from_bytes(whole[:8], "little")
    arrays = json.loads(whole[8:start])
    extra = [n for n in arrays if n.startswith("bias.")] + ["positions"]
    assert extra == ["bias.0", "bias.1", "positions"]
    places = [*range(0, start, 3), *range(start, len(whole), 13)]
    for array in extra:
        begin, end = arrays[array]["data_offsets"]
        places += range(start + begin, start + end)
    for place in places:
        bad = bytearray(whole)
        bad[place] ^= rng.choice((1, 2, 4, 8, 16, 32, 64, 128, 255))
        path.write_bytes(bad)
        with pytest.raises(store.Damaged, match=str(path)):
            packet_file.verify(tmp_path, name, model)
    path.write_bytes(bad)
    with pytest.raises(store.Damaged, match=str(path)):
        packet_file.load(tmp_path, [(name, made_by)], model)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda p, c: (p, c._replace(positions=c.positions + 1)), "positions are not within"),
        (lambda p, c: (p, c._replace(bias=c.bias[:1])), "not the keys and values of 2 layers"),
        (
            lambda p, c: (p, c._replace(bias=tuple(b[:, :1] for b in c.bias))),
            r"array bias.0 is not F32 \[2, 6\]",
        ),
        (lambda p, c: (p, c._replace(k=c.k[:1])), "not the keys and values of 2 layers"),
        (
            lambda p, c: (dataclasses.replace(p, length=5), c),
            "has not the positions of 1 to 5 slots",
        ),
    ],
)
def test_what_is_no_compressed_packet_is_refused(load, tmp_path, change, error):
    model, compressor = load(), make("zeromerge", 0.25)
    (packet,) = build_packets(model, None, [ids(0, 24)], compressor=compressor)
    packet, cache = change(packet, packet.cache)
    with store.writing(tmp_path) as writer:
        entry = writer.place(writer.prepare(dataclasses.replace(packet, cache=cache)))
    wanted = [(entry.packet, provenance_of(model, None, compressor=compressor))]
    with pytest.raises(store.Damaged, match=error):
        packet_file.load(tmp_path, wanted, model)


def test_the_compressor_is_of_a_packets_identity(load, tmp_path):
    model, document = load(), ids(0, 24)
    specs = [None, "knorm", "snapkv", "snapkv/window=4", "snapkv/keep=0.25"]
    made_by = [provenance_of(model, None, compressor=make(spec)) for spec in specs]
    names = {packet_file.packet_name(p, document, 24) for p in made_by}
    assert len(names) == len(specs)
    _, ((name, _),) = put(tmp_path, model, make("snapkv"), document)
    _, ((whole, _),) = put(tmp_path, model, None, document)
    with store.writing(tmp_path) as writer:
        for found, provenance in ((name, made_by[2]), (whole, made_by[0])):
            writer.provenance(provenance)
            writer.document(provenance, "a", Entry(found))
    label = "snapkv/keep=0.5/keep_soft_tokens=true/window="
    for asked, stored, wanted, message in (
        (made_by[0], name, None, f"another compressor: {label}8/kernel=5, not none"),
        (made_by[3], whole, "a", f"another compressor: none, not {label}4/kernel=5"),
    ):
        with pytest.raises(ValueError, match=message):
            packet_file.load(tmp_path, [(stored, asked)], model)
        if wanted:
            with pytest.raises(
                ValueError,
                match=f"{message}.*launch.build_packets --compress=snapkv/keep=0.5/window=4[.]",
            ):
                store.find(tmp_path, asked, [wanted])


def test_a_store_of_compressed_packets_answers(load, tmp_path):
    model, made_with = load(), {"template": "completion", "preamble": "Answer."}
    small = kvp.Store(tmp_path, model, "none", **made_with, compress="zeromerge", keep=0.4)
    whole = kvp.Store(tmp_path, model, "none", **made_with)
    documents = {f"d{i}": text(i) for i in (5, 6, 7)}
    assert small.add(documents).built == list(documents)
    assert small.add(documents) == kvp.Added([], list(documents))
    assert (small.documents(), whole.documents()) == ([*documents], [])
    assert small.ask("When?", [*documents], 6).text
    assert small.ask("When?", [*documents], 6, method="full_recompute").text
    with pytest.raises(ValueError, match="another compressor: zeromerge/keep=0.4/.*, not none"):
        whole.ask("When?", ["d5"])
    whole.add({"d5": documents["d5"]})
    assert [d.compressor.split("/")[0] for d in contents.read(tmp_path)] == [
        "none",
        *["zeromerge"] * 3,
    ]
    with pytest.raises(ValueError, match="no compressor 'zip'"):
        kvp.Store(tmp_path, model, compress="zip")


def test_the_programs_build_list_and_answer(byte_model, tmp_path):
    corpus = write_corpus(tmp_path / "docs.jsonl", 8)

    def run(program: str, *flags: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", f"launch.{program}", f"--store={tmp_path / 'store'}"]
        return subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)

    made_with = [f"--model={byte_model}", "--adapter=none", "--template=completion"]
    made_with += ["--compress=snapkv/window=4", "--keep=.25"]
    built = run("build_packets", f"--input={corpus}", *made_with)
    assert built.returncode == 0 and "built" in built.stdout, built.stderr
    listed = run("store", "ls")
    assert listed.returncode == 0 and "snapkv/keep=0.25/window=4" in "".join(listed.stdout.split())
    helped = "".join(run("build_packets", "--help").stdout.split())
    assert all(name in helped for name in COMPRESSORS)
    verified = run("store", "verify")
    assert verified.returncode == 0 and "damaged" not in verified.stdout, verified.stderr
    asked = "--documents=d6,d5", "--query=When?", "--max_new_tokens=4"
    answered = run("answer", *asked, *made_with)
    assert answered.returncode == 0 and answered.stdout.strip(), answered.stderr
    # What is not given is as it was built; with full_recompute too, which reads no packet.
    alike = run("answer", *asked)
    assert (alike.returncode, alike.stdout) == (0, answered.stdout), alike.stderr
    assert f"As the documents were built: --model={byte_model} " in alike.stderr
    assert "--compress=snapkv/keep=0.25/window=4\n" in alike.stderr
    full = run("answer", *asked, "--method=full_recompute")
    assert full.returncode == 0 and full.stdout.strip(), full.stderr
    refused = run("answer", *asked, *made_with[:-1], "--keep=.5")
    assert refused.returncode == 1 and "Loading" not in refused.stderr
    assert "built with --compress=snapkv/keep=0.25/window=4; asked for: --comp" in refused.stderr
