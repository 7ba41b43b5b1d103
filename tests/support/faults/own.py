"""Files that the project writes and reads back."""

import hashlib
import json
import pathlib
import random
import shutil
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import models
from configs import train as train_config
from kvpacket_jax import teacher
from kvpacket_jax.data import EncodedExample
from kvpacket_jax.evaluate.rows import RowFile, claim
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.serve import build, corpus, session, store
from kvpacket_jax.train import log, setup
from kvpacket_jax.train import step as step_lib
from kvpacket_jax.train.checkpoint import Checkpoints
from models import low_rank
from tests.support import byte_model
from tests.support.corpus import write_corpus
from tests.support.faults import mutations
from tests.support.faults.harness import Attempt, in_file, without_file

WORDING = build.wording("completion", "Answer.")


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


def packets(
    folder: pathlib.Path, rng: random.Random, number: int, key: bytes | None = None
) -> Iterator[Attempt]:
    """A store's packets and entries, read as for a request of three documents, and listed."""
    model = tiny_model(folder)
    documents = corpus.read_file(write_corpus(folder.with_name("docs.jsonl"), 9))
    build.build(model, build.plan(model, None, WORDING, documents), folder, key=key)
    ids = ["d1", "d3", "d4"]

    def open_session() -> session.Session:
        return session.open_session(model, folder, ids, WORDING, "no_recompute", key=key)

    def read() -> tuple[str, list]:
        opened = open_session()
        return digest_of(opened.context) + str(opened.start), store.contents(folder, key)

    right = read()
    files = [store.packet_path(folder, w.name) for w in open_session().wanted]
    entries = [
        p for p in folder.glob("documents/*/*.json") if json.loads(p.read_text()).get("id") in ids
    ]
    entries += folder.glob(f"documents/*/{store.PREAMBLE}")
    provenances = list(folder.glob("documents/*/provenance.json"))
    # Of a packet's two copies, entry and file, half of the faults each.
    for some, count in ((files, number // 2), (entries + provenances, number - number // 2)):
        yield from _damaged_files(some, rng, count, read, lambda found: found == right)


def signed_packets(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """The same with a key."""
    yield from packets(folder, rng, number, b"k" * 32)


def adapters(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """A trained adapter's folder."""
    model = tiny_model(folder)
    factors = low_rank.init(model.config, jax.random.key(0), 2, ("q", "v"))
    adapter = adapter_lib.empty(model.config.dim)._replace(
        header=jnp.ones((2, model.config.dim)),
        primer=jnp.arange(5, dtype=jnp.int32),
        writer=jax.tree.map(lambda x: x + 0.5, factors),
    )
    adapter_lib.save_adapter(folder, adapter, {"model": model.fingerprint})
    right = adapter_lib.fingerprint(adapter)

    def read() -> str:
        return adapter_lib.fingerprint(adapter_lib.load_adapter(folder, model))

    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    yield from _damaged_files(files, rng, number, read, lambda found: found == right)


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
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    right = {step: digest_of(state_at(step)) for step in (4, 6)}

    def read() -> tuple[int, str]:
        again = Checkpoints(folder, log=lambda _: None)
        try:
            state = again.restore(state_at(0), described)
            return int(state.step), digest_of(state)
        finally:
            again.close()

    def mend() -> None:
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)

    def goes_on(found: tuple[int, str]) -> bool:
        return right.get(found[0]) == found[1]

    files = sorted(p for p in (folder / "6").rglob("*") if p.is_file() and p.stat().st_size)
    for attempt in _damaged_files(files, rng, number, read, goes_on):
        yield attempt._replace(mend=mend)


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
    rows = RowFile(folder / "rows.jsonl")
    for i in range(20):
        fields = {"example": f"e{i}", "method": "epic", "setting": "", "question": 0}
        rows.write([fields | {"answer": f"{i * 37}", "f1": i / 20, "kl": [0.5, i]}])
    known = {row["example"]: row for row in RowFile(folder / "rows.jsonl").rows}
    metrics = log.Log(epath.Path(folder / "metrics.jsonl"), 100)
    for i in range(20):
        metrics.write({"step": i + 1, "loss": 1 / (i + 1)})
    metrics.flush()
    losses = {row["step"]: row["loss"] for row in log.read(folder / "metrics.jsonl")}

    def read() -> tuple[list, list]:
        claim(folder, identity)
        found = RowFile(folder / "rows.jsonl").rows
        return found, log.read(folder / "metrics.jsonl")

    def believed(found: tuple[list, list]) -> bool:
        rows, steps = found
        return all(known.get(r["example"]) == r for r in rows) and all(
            losses.get(r["step"]) == r["loss"] for r in steps
        )

    files = [folder / name for name in ("rows.jsonl", "run.json", "metrics.jsonl")]
    yield from _damaged_files(files, rng, number, read, believed)
