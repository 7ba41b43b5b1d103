"""A corpus on disk: the same folder, byte for byte, whatever happened while it was built."""

import functools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

import models
from kvpacket_jax import compress
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.packet import build_packets
from kvpacket_jax.runtime import shards
from kvpacket_jax.serve import build, corpus, identity, loading
from kvpacket_jax.storage import packet_file, store
from tests.support.corpus import text, tree, write_corpus

ROOT = pathlib.Path(__file__).parents[2]
BATCH_TOKENS = 128


@pytest.fixture(scope="module")
def adapter(model):
    return adapter_lib.init(jax.random.key(0), model.params["embedding"], 3, 2)


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("docs") / "docs.jsonl")


WORDING = identity.wording("completion", "Answer.")


def plan(model, adapter, path, on_bad=corpus.refuse, **options) -> list[build.Part]:
    documents = corpus.read_file(path, on_bad)
    options |= {"batch_tokens": BATCH_TOKENS, "on_bad": on_bad}
    return build.plan(model, adapter, WORDING, documents, **options)


def run_build(model, parts, folder) -> build.Progress:
    """Builds, and the sums of what it told."""
    told = []
    build.build(model, parts, folder, on_batch=told.append)
    return build.Progress(*map(sum, zip(*told, strict=True)))


@pytest.fixture(scope="module")
def reference(model, adapter, docs, tmp_path_factory):
    """A folder built at a stroke; its bytes."""
    folder = tmp_path_factory.mktemp("reference")
    run_build(model, plan(model, adapter, docs), folder)
    return tree(folder)


# ---- what is built


def test_a_store_holds_what_the_method_would_build(model, adapter, docs, tmp_path):
    run_build(model, plan(model, adapter, docs), tmp_path)
    provenance = identity.document_provenance(model, adapter, WORDING)
    ids = ["d3", "d50", "d5"]
    preamble_by, preamble = identity.preamble_item(model, WORDING)
    wanted = [(preamble.name, preamble_by)]
    wanted += [(e.packet, provenance) for e in store.find(tmp_path, provenance, ids)]
    found = packet_file.load(tmp_path, wanted, model)
    texts = [text(3), text(5), text(5)]
    tokens = [model.tokenizer.encode(WORDING.template.document_text(t)) for t in texts]
    built = build_packets(model, None, [preamble.tokens]) + build_packets(model, adapter, tokens)
    for packet, expected in zip(found, built, strict=True):
        assert packet.length == expected.length
        assert packet.manifest.tokens == expected.manifest.tokens
        for a, b in zip(*(jax.tree.leaves(p.cache) for p in (packet, expected)), strict=True):
            a, b = (np.asarray(x, np.float64)[:, : packet.length] for x in (a, b))
            np.testing.assert_allclose(a, b, atol=2e-5)
    assert wanted[2] == wanted[3]  # the same text is one packet


def test_documents_are_read_after_the_primer(model, adapter, docs, tmp_path):
    primed = adapter._replace(primer=jax.numpy.arange(40, 110, dtype=jax.numpy.int32))
    parts = plan(model, primed, docs)
    run_build(model, parts, tmp_path)
    items = [item for item in parts[1].items if item.ids[0] in ("d3", "d50", "d7")]
    wanted = [(item.name, parts[1].provenance) for item in items]
    built = build_packets(model, primed, [item.tokens for item in items])
    without = build_packets(model, adapter, [item.tokens for item in items])
    for packet, expected, other in zip(
        packet_file.load(tmp_path, wanted, model), built, without, strict=True
    ):
        values = (p.cache.v[1][0, : packet.length] for p in (packet, expected, other))
        stored, right, without_primer = map(np.asarray, values)
        np.testing.assert_allclose(stored, right, atol=2e-5)
        assert np.abs(stored - without_primer).max() > 1e-2


def test_what_is_there_is_kept_and_what_is_damaged_made_again(
    model, adapter, docs, tmp_path, reference, monkeypatch
):
    parts = plan(model, adapter, docs)
    total = sum(len(part.items) for part in parts)
    computed = []
    original = build.build_batch
    monkeypatch.setattr(build, "build_batch", lambda *a: computed.append(a[3]) or original(*a))
    assert run_build(model, parts, tmp_path).built == total
    assert max(len(part.items) for part in parts) < 61  # equal texts share a packet
    assert tree(tmp_path) == reference
    batches = computed[:]
    computed.clear()
    assert run_build(model, parts, tmp_path) == (
        total,
        sum(len(i.tokens) for p in parts for i in p.items),
        0,
    )
    assert computed == []
    rng = random.Random(0)
    packets = sorted((tmp_path / "packets").iterdir())
    gone, bad = rng.sample(packets, 2)
    gone.unlink()
    spoiled = bytearray(bad.read_bytes())
    spoiled[rng.randrange(len(spoiled))] ^= 4
    bad.write_bytes(spoiled)
    entry = rng.choice(sorted(tmp_path.glob("documents/*/*.json")))
    entry.unlink()
    kept = {p: p.stat().st_ino for p in packets if p not in (gone, bad)}
    complaints = []
    build.build(model, parts, tmp_path, on_damaged=complaints.append)
    assert len(complaints) == 1 and str(bad) in complaints[0]
    assert 1 <= len(computed) <= 2 and all(batch in batches for batch in computed)
    assert all(p.stat().st_ino == number for p, number in kept.items())
    assert tree(tmp_path) == reference


def test_a_changed_text_moves_the_id_and_keeps_the_rest(model, docs, tmp_path):
    folder = tmp_path / "store"
    run_build(model, plan(model, None, docs), folder)
    provenance = identity.document_provenance(model, None, WORDING)
    ((old, _),) = store.find(folder, provenance, ["d7"])
    lines = docs.read_text().splitlines()
    lines[7] = json.dumps({"id": "d7", "text": "another text"})
    changed = tmp_path / "changed.jsonl"
    changed.write_text("\n".join(lines))
    assert run_build(model, plan(model, None, changed), folder).built == 1
    ((new, _),) = store.find(folder, provenance, ["d7"])
    (packet,) = packet_file.load(folder, [(new, provenance)], model)
    assert model.tokenizer.decode(packet.manifest.tokens) == "another text\n\n"
    packet_file.verify(folder, old, model)


# ---- the plan


def test_shards_are_a_partition_whatever_the_order(model, adapter, docs, tmp_path):
    whole = plan(model, adapter, docs)
    shards = [plan(model, adapter, docs, shard=(i, 4)) for i in range(4)]
    for p, part in enumerate(whole):
        found = [item.name for shard in shards for item in shard[p].items]
        assert sorted(found) == sorted(item.name for item in part.items)
    assert all(len(shard[1].items) > 5 for shard in shards)
    again = plan(model, adapter, docs, shard=(1, 4))
    assert [part.batches for part in again] == [part.batches for part in shards[1]]
    for i in (2, 0, 3, 1):
        run_build(model, shards[i], tmp_path / "one")
    for i in range(4):
        run_build(model, shards[i], tmp_path / "other")
    assert tree(tmp_path / "one") == tree(tmp_path / "other")


def test_builds_at_the_same_time_make_the_same_folder(model, docs, tmp_path):
    shards = [plan(model, None, docs, shard=(i, 3)) for i in range(3)]
    for shard in shards:
        run_build(model, shard, tmp_path / "alone")
    with ThreadPoolExecutor() as pool:  # two of each
        for future in [
            pool.submit(build.build, model, s, tmp_path / "together") for s in shards * 2
        ]:
            future.result()
    assert tree(tmp_path / "together") == tree(tmp_path / "alone")


def test_the_plan_does_not_depend_on_what_is_there(model, adapter, docs):
    parts = plan(model, adapter, docs)
    for part in parts:
        members = sorted(i for batch in part.batches for i in batch.members)
        assert members == list(range(len(part.items)))
        extra = part.adapter.num_tokens if part.adapter else 0
        for batch in part.batches:
            assert len(batch.members) * batch.rows <= BATCH_TOKENS or len(batch.members) == 1
            assert all(len(part.items[i].tokens) + extra <= batch.rows for i in batch.members)


# ---- bad input

GOOD = '{"id": "a", "text": "x"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2: no JSON at character 2: Expecting"),
        (b"[1]", "line 2: it is not an object but list"),
        (b'{"id": "b"}', "line 2: text missing; it has id"),
        (b"{}", "line 2: id and text missing; it has nothing"),
        (b'{"id": "b", "text": " "}', "line 2: text must be a text"),
        (b'{"id": "b", "text": null}', "line 2: text must be a text"),
        (b'{"id": 1.5, "text": "x"}', "line 2: id must be a text .* found 1.5"),
        (b'{"id": "b", "text": "\\ud800"}', "line 2: .*surrogates not allowed"),
        (b'{"id": "b", "text": "\xff"}', "line 2: .*can't decode byte 0xff"),
        (b'{"id": "a", "text": "y"}', "line 2: id 'a' is line 1's already"),
        (
            json.dumps({"id": "b", "text": "x" * 5000}).encode(),
            "line 2: .* spans 5002 positions; the context of .* is 4096",
        ),
    ],
)
def test_a_bad_line_is_named_and_stops_or_is_skipped(model, tmp_path, line, message):
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b"\n".join([GOOD.encode(), line, b"", b'{"id": 7, "text": "y"}']))
    with pytest.raises(ValueError, match=f"docs.jsonl, {message}"):
        plan(model, None, path)
    skipped = []
    parts = plan(model, None, path, on_bad=skipped.append)
    assert len(skipped) == 1 and "docs.jsonl, line 2: " in skipped[0]
    assert [item.ids for item in parts[1].items] == [["a"], ["7"]]


def test_mistakes_are_refused_before_anything_is_computed(model, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="empty.jsonl has no document"):
        plan(model, None, tmp_path / "empty.jsonl")
    with pytest.raises(FileNotFoundError, match="absent"):
        plan(model, None, tmp_path / "absent")
    with pytest.raises(ValueError, match="no template 'x'; there are completion, chat"):
        identity.wording("x")
    (tmp_path / "long.jsonl").write_text(json.dumps({"id": "b", "text": "x" * 5000}))
    with pytest.raises(ValueError, match="no document that can be used"):
        plan(model, None, tmp_path / "long.jsonl", on_bad=lambda message: None)
    assert shards.parse("2/3") == (2, 3)
    for wrong in ("3/3", "1", "-1/2", "1/0", "a/b", "1/2/3", ""):
        with pytest.raises(ValueError, match="is not i/n with i from 0"):
            shards.parse(wrong)


def test_a_text_of_which_nothing_would_stay_is_a_bad_line(model, adapter, tmp_path):
    path, skipped = tmp_path / "docs.jsonl", []
    path.write_text(
        "".join(json.dumps({"id": i, "text": i * n}) + "\n" for i, n in (("a", 40), ("b", 4)))
    )
    compressor = compress.make("knorm", 0.25)
    parts = plan(model, adapter, path, on_bad=skipped.append, compressor=compressor)
    assert [item.ids for item in parts[1].items] == [["a"]]
    assert len(skipped) == 1 and "document 'b': beside the adapter's 5 soft tokens" in skipped[0]


def test_auto_takes_the_dtype_of_the_store(byte_model, model, docs, tmp_path):
    assert store.resolved_dtype(tmp_path, "auto") == "auto"
    run_build(model, plan(model, None, docs), tmp_path)
    found, *_ = loading.load_for_store(str(byte_model), "auto", tmp_path, adapter="none")
    assert found.dtype == "float32"
    assert store.resolved_dtype(tmp_path, "bfloat16") == "bfloat16"
    other = models.load(str(byte_model), "bfloat16")
    with store.writing(tmp_path) as writer:
        its = identity.document_provenance(other, None, WORDING)
        writer.provenance(its)
        assert store.resolved_dtype(tmp_path, "auto") == "float32"  # begun, and no more
        writer.document(its, "a", packet_file.Entry("packet"))
    assert store.resolved_dtype(tmp_path, "auto") == "auto"


# ---- processes


@pytest.fixture(scope="module")
def command(byte_model, docs):
    """(folder, options) -> the command that builds the corpus there."""

    def get(folder: pathlib.Path, **options) -> list[str]:
        options = {
            "model": byte_model,
            "dtype": "float32",
            "input": docs,
            "store": folder,
            "adapter": "none",
            "template": "completion",
            "preamble": "Answer.",
            "batch_tokens": BATCH_TOKENS,
        } | options
        flags = [f"--{name}={value}" for name, value in options.items()]
        return [sys.executable, "-m", "launch.build_packets", *flags]

    return get


@pytest.fixture(scope="module")
def built(model, docs, tmp_path_factory):
    """The bytes of a folder built here, bare."""
    folder = tmp_path_factory.mktemp("built")
    run_build(model, plan(model, None, docs), folder)
    return tree(folder)


def files(folder: pathlib.Path) -> int:
    # Not what is under way: that comes and goes.
    walks = (os.walk(folder / name) for name in ("packets", "documents"))
    return sum(len(found) for walk in walks for _, _, found in walk)


def kill(command: list[str], folder: pathlib.Path, number: int, seconds: float) -> int:
    """Kills a build some time after `number` files are there; its exit code."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and files(folder) < number:
        time.sleep(0.0005)
    time.sleep(seconds)
    process.kill()
    return process.wait()


def killed_and_resumed(command, folder, built, kills: int) -> None:
    rng = random.Random(kills)
    killed = 0
    for i in range(kills):
        # At moments between what is there and the end.
        there = files(folder)
        number = rng.randint(there + 1, max(there + 1, len(built) * (i + 1) // kills))
        killed += kill(command(folder), folder, number, rng.uniform(0, 0.003)) == -signal.SIGKILL
    assert killed >= kills * 2 // 3
    partial = files(folder)
    subprocess.run(command(folder), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert 0 < partial
    assert tree(folder) == built


def test_killed_twice_ends_with_the_same_folder(command, built, tmp_path):
    programs = tmp_path / "programs"
    command = functools.partial(command, compilation_cache_dir=programs)
    killed_and_resumed(command, tmp_path / "store", built, 2)
    assert any(programs.iterdir())


@pytest.mark.slow
def test_killed_twenty_times_ends_with_the_same_folder(command, built, tmp_path):
    killed_and_resumed(command, tmp_path / "store", built, 20)


def test_the_program_ends_with_a_message_at_a_bad_line(command, tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text(f"{GOOD}\nnonsense\n")
    done = subprocess.run(
        command(tmp_path / "store", input=path), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert (
        "line 2: no JSON at character 1: Expecting value" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not (tmp_path / "store").exists()
