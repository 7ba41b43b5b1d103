"""Files that the project writes and reads back."""

import hashlib
import json
import pathlib
import random
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import models
from configs import train as train_config
from kvpacket_jax import sweep, teacher
from kvpacket_jax.adapters import card
from kvpacket_jax.compress import Compressor, make
from kvpacket_jax.data import EncodedExample
from kvpacket_jax.evaluate import timings
from kvpacket_jax.evaluate.rows import RowFile, claim
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.report import page
from kvpacket_jax.runtime import sealed
from kvpacket_jax.serve import build, corpus, found, identity, session
from kvpacket_jax.storage import contents, store
from kvpacket_jax.train import log, setup
from kvpacket_jax.train import step as step_lib
from kvpacket_jax.train.checkpoint import Checkpoints
from models import low_rank
from tests.support import byte_model
from tests.support.corpus import write_corpus
from tests.support.faults import mutations
from tests.support.faults.harness import Attempt, in_file, without_file

WORDING = identity.wording("completion", "Answer.")


def tiny_model(folder: pathlib.Path) -> models.LanguageModel:
    """A random model beside a folder."""
    where = folder.with_name("model")
    if not where.exists():
        where.mkdir(parents=True)
        byte_model.write(where)
    return models.load(str(where), "float32", folder.with_name("cache"))


def digest_of(arrays) -> str:
    """SHA-256 of the arrays of a pytree."""
    content = hashlib.sha256()
    for array in jax.tree.leaves(arrays):
        content.update(np.asarray(array).tobytes())
    return content.hexdigest()


def _damaged_files(
    paths: list[pathlib.Path], rng: random.Random, number: int, read: Callable, right: Callable
) -> Iterator[Attempt]:
    """Faults over files in turn: bytes, JSON's values where it is JSON, each once gone."""
    for path in paths:
        yield without_file(path, read, right)
    for i in range(number - len(paths)):
        path = paths[i % len(paths)]
        if path.suffix in (".json", ".entry") and i % 2:
            (text,) = mutations.strange_json(path.read_text(), rng, 1)
            data = text.encode()
        else:
            # The i-th of a long row of faults: each file's regions in turn.
            (data,) = mutations.damaged(path.read_bytes(), rng, 1, i // len(paths))
        yield in_file(path, data, read, right)


def _without_problems(rows: list[contents.StoredDocument]) -> list[contents.StoredDocument]:
    if problems := [f"{row.id}: {row.problem}" for row in rows if row.problem]:
        raise ValueError(", ".join(problems))
    return rows


def packets(
    folder: pathlib.Path,
    rng: random.Random,
    number: int,
    key: bytes | None = None,
    compressor: Compressor | None = None,
) -> Iterator[Attempt]:
    """A store's packets and entries, read as for a request of three documents, and listed."""
    model = tiny_model(folder)
    documents = corpus.read_file(write_corpus(folder.with_name("docs.jsonl"), 9))
    parts = build.plan(model, None, WORDING, documents, compressor=compressor)
    build.build(model, parts, folder, key=key)
    ids, options = ["d1", "d3", "d4"], {"key": key, "compressor": compressor}

    def open_session() -> session.Session:
        return session.read(found.find(model, folder, ids, WORDING, "no_recompute", **options))

    def read() -> tuple[str, list]:
        opened = open_session()
        rows = _without_problems(contents.read(folder, key))
        return digest_of(opened.context) + str(opened.start), rows

    right = read()
    files = [store.packet_path(folder, w.name) for w in open_session().wanted]
    entries = [
        p for p in folder.glob("documents/*/*.json") if json.loads(p.read_text()).get("id") in ids
    ]
    entries += folder.glob(f"documents/*/{store.PREAMBLE}")
    provenances = list(folder.glob("documents/*/provenance.json"))
    # Of a packet's two copies, entry and file, half of the faults each.
    yield from _damaged_files(files, rng, number // 2, read, right.__eq__)
    rest = entries + provenances
    for attempt in _damaged_files(rest, rng, number - number // 2, read, right.__eq__):
        # Which of an entry and its packet is damaged is not known where they differ.
        yield attempt._replace(named=attempt.named and (*attempt.named, ".safetensors"))


def verified_store(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """A store that is verified without a model: all its packets and entries."""
    model = tiny_model(folder)
    documents = corpus.read_file(write_corpus(folder.with_name("docs.jsonl"), 3))
    build.build(model, build.plan(model, None, WORDING, documents), folder)

    def read() -> list:
        return _without_problems(contents.read(folder, every_byte=True))

    paths, whole = [*folder.glob("packets/*"), *folder.glob("documents/*/*")], read()
    for attempt in _damaged_files(paths, rng, number, read, whole.__eq__):
        if attempt.what.endswith("is gone"):  # without its entry a document is removed
            attempt = attempt._replace(right=set(whole).issuperset)
        yield attempt._replace(named=())  # documents are listed, not files


def signed_packets(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """The same with a key."""
    yield from packets(folder, rng, number, b"k" * 32)


def compressed_packets(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """The same with fewer slots, their positions and a bias."""
    yield from packets(folder, rng, number, compressor=make("zeromerge"))


def adapters(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """A trained adapter's folder, with its card."""
    model = tiny_model(folder)
    factors = low_rank.init(model.config, jax.random.key(0), 2, ("q", "v"))
    adapter = adapter_lib.empty(model.config.dim)._replace(
        header=jnp.ones((2, model.config.dim)),
        primer=jnp.arange(5, dtype=jnp.int32),
        writer=jax.tree.map(lambda x: x + 0.5, factors),
    )
    adapter_lib.save_adapter(folder, adapter, {"model": model.fingerprint})
    scores = {way: card.Score(0.5, 0.9, 0.8, 0.7, 0.1) for way in (card.ADAPTER, card.BARE)}
    described = folder / card.FILE
    made = card.Card(model.name, [card.Row("it", 2, 30, 9, 0.6, scores)], "")
    card.write(described, made, adapter, "float32")
    right = adapter_lib.fingerprint(adapter)
    right_card = card.read(described, adapter)

    def read() -> tuple[str, card.Card | None]:
        found = adapter_lib.load_adapter(folder, model)
        return adapter_lib.fingerprint(found), card.read(described, found)

    def is_right(found: tuple[str, card.Card | None]) -> bool:
        return found == (right, right_card if described.exists() else None)

    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    yield from _damaged_files(files, rng, number, read, is_right)


def checkpoints(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """The newest of two checkpoints: the run goes on from it or from the one before."""
    described = {"model": "it", "model_name": "it", "config": {}, "examples": "them"}
    optimizer = setup.make_optimizer(train_config.get_config())

    def state_at(step: int) -> step_lib.TrainState:
        adapter = adapter_lib.Adapter(jnp.full((3, 8), float(step)), jnp.zeros((0, 8)))
        return step_lib.init_state(adapter, optimizer)._replace(step=jnp.int32(step))

    written = Checkpoints(folder)
    for step in (4, 6):
        measures = {"worst": 1 / step, "kind": "a", "scores": {}}
        written.save(step, state_at(step), described, measures)
    written.close()
    right = {step: digest_of(state_at(step)) for step in (4, 6)}

    def read() -> tuple[int, str]:
        again = Checkpoints(folder, log=lambda _: None)
        try:
            state = again.restore(state_at(0), described)
            return int(state.step), digest_of(state)
        finally:
            again.close()

    def goes_on(found: tuple[int, str]) -> bool:
        return right.get(found[0]) == found[1]

    files = sorted(p for p in (folder / "6").rglob("*") if p.is_file() and p.stat().st_size)
    yield from _damaged_files(files, rng, number, read, goes_on)


def teacher_targets(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """The teacher's answers on disk: what is damaged is asked again."""
    model = tiny_model(folder)
    folder.mkdir(exist_ok=True)
    example = EncodedExample([1, 2, 3], [[4, 5, 6, 7], [8, 9]], [[10, 11], [12]])

    def read() -> str:
        found = teacher.targets(model, example, 4, epath.Path(folder))
        return digest_of([np.asarray(a) for a in found.answers]) + digest_of(found.hidden)

    right = read()
    files = [p for p in folder.iterdir() if p.is_file()]
    yield from _damaged_files(files, rng, number, read, lambda found: found == right)


def run_state(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """A run's rows, its identity and its metrics: a damaged line is done again, never believed."""
    folder.mkdir()
    identity = {"model": "it", "dataset": {"name": "biography"}, "seed": 0}
    claim(folder, identity)
    answers, metrics = folder / "rows.jsonl", folder / "metrics.jsonl"
    file, written = RowFile(answers), log.Log(epath.Path(metrics), 100)
    for i in range(20):
        fields = {"example": f"e{i}", "method": "epic", "setting": "", "question": 0}
        file.write([fields | {"answer": f"{i * 37}", "f1": i / 20, "kl": [0.5, i]}])
        written.write({"step": i + 1, "loss": 1 / (i + 1)})
    written.flush()
    rows = dict(zip(answers.read_bytes().splitlines(), file.rows, strict=True))
    steps = dict(zip(metrics.read_bytes().splitlines(), written.rows, strict=True))

    def read() -> tuple[list, list]:
        claim(folder, identity)
        return RowFile(answers).rows, log.read(metrics)

    def right(found: tuple[list, list]) -> bool:
        return _is_of(answers, rows, found[0]) and _is_of(metrics, steps, found[1])

    yield from _damaged_files([answers, folder / "run.json", metrics], rng, number, read, right)


def _is_of(path: pathlib.Path, written: dict[bytes, dict], found: list[dict]) -> bool:
    """Whether what was found in a file is all that its whole lines hold, and nothing else."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    there = [written[line] for line in lines if line in written]
    return all(row in written.values() for row in found) and all(row in found for row in there)


class _Unmeasured:
    """A model that cannot be timed, as far as timings are read."""

    num_devices = 1

    @property
    def dtype(self):
        raise InterruptedError("measured again")


def results(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """What a finished run leaves to a report, to itself and to a sweep."""
    claim(folder, {"model": "it", "dataset": {"name": "biography", "options": {"seed": 1}}})
    asked = {"num_timed": 0, "runs": 1, "devices": 1}
    timed = {"date": "1970-01-01", "asked": asked, "machine": {"threads": 2}, "methods": {}}
    row = {"method": "epic", "setting": "", "f1": 0.5, "date": "1970-01-01", "machine": {}}
    _write(folder / "timings.json", sealed.stamped(timed))
    _write(folder / "results.json", [sealed.stamped(row)])
    config = folder.parent / "it.py"
    config.write_text(
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config():\n    return ConfigDict({'seed': 0})\n"
    )
    run = sweep.Run("evaluate", folder, (f"--config={config}",))
    run.record_end()
    files = [folder / n for n in ("results.json", "timings.json", "sweep.json", "run.json")]
    whole = {path: path.read_bytes() for path in files}

    def read() -> tuple[str, dict, bool]:
        reported = repr(page.read([folder])[0])
        try:
            times = timings.timings(folder / "timings.json", _Unmeasured(), [], [], 1)
        except InterruptedError:
            times = timed
        return reported, times, run.done

    right = read()
    assert right[1:] == (timed, True)

    def is_right(found: tuple[str, dict, bool]) -> bool:
        changed = {p.name for p in files if not p.exists() or p.read_bytes() != whole[p]}
        if "results.json" in changed:
            done = (False,)
        else:
            done = (True, False) if "sweep.json" in changed else (True,)
        return found[:2] == right[:2] and found[2] in done

    yield from _damaged_files(files, rng, number, read, is_right)


def _write(path: pathlib.Path, value) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
