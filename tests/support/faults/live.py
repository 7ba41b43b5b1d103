"""Faults of the machine while it works: killed builders, a full disk, and thousands of requests."""

import contextlib
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

from kvpacket_jax.serve import build, corpus, found, session
from tests.support.corpus import write_corpus
from tests.support.faults.harness import Attempt, resident
from tests.support.faults.own import WORDING, digest_of, tiny_model

DOCUMENTS = 24
QUESTIONS = ("When does the ferry leave?", "Where?", "Which pier is it, and does the bus wait?")
GROWTH = 300 * 2**20  # bytes that thousands of requests may add to the process


class _Case:
    """A small corpus in a store, and what its packets are."""

    def __init__(self, folder: pathlib.Path):
        self.model = tiny_model(folder)
        self.folder = folder
        self.input = folder.with_name("docs.jsonl")
        if not self.input.exists():
            write_corpus(self.input, DOCUMENTS)
        self.ids = [f"d{i}" for i in range(DOCUMENTS)]

    def build(self) -> None:
        documents = corpus.read_file(self.input)
        build.build(self.model, build.plan(self.model, None, WORDING, documents), self.folder)

    def open(self, ids) -> session.Session:
        return session.read(found.find(self.model, self.folder, ids, WORDING, "no_recompute"))

    def read(self) -> str:
        return digest_of(self.open(self.ids).context)

    def empty(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk, writing beyond `size` of a file fails; Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_disk(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """A build that the disk has no room for ends in words; the next one, with room, is whole."""
    case = _Case(folder)
    case.build()
    right = case.read()
    largest = max(p.stat().st_size for p in folder.rglob("*") if p.is_file())

    def read(size: int) -> str:
        with contextlib.suppress(OSError), _files_of_at_most(size):
            case.build()
        case.build()
        return case.read()

    for i in range(number):
        size = rng.randrange(largest) if i % 2 else rng.randrange(1500)
        what = f"files of at most {size} bytes"
        yield Attempt(what, case.empty, lambda size=size: read(size), right.__eq__)


def build_for_ever(folder: pathlib.Path) -> None:
    """Builds a store and removes packets of it, in turn, from the line "started" on."""
    case = _Case(folder)
    case.build()
    print("started", flush=True)
    while True:
        for path in list(folder.glob("packets/*"))[::3]:
            path.unlink(missing_ok=True)
        case.build()


def killed_builders(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """Two builders of one store are killed while it is read: what is read is right or refused.

    The next build is whole.
    """
    case = _Case(folder)
    case.build()
    right = case.read()
    code = f"import pathlib, {__name__} as it; it.build_for_ever(pathlib.Path({str(folder)!r}))"

    def read(seconds: float) -> str:
        command = [sys.executable, "-c", code]
        builders = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        for builder in builders:
            builder.stdout.readline()
        end, found = time.monotonic() + seconds, set()
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):  # a packet is gone at this moment
                found.add(case.read())
        for builder in builders:
            builder.kill()
            builder.communicate()
        case.build()
        found.add(case.read())
        return found.pop() if len(found) == 1 else f"{len(found)} different contents"

    for _ in range(number):
        seconds = rng.uniform(0.05, 1.5)
        what = f"killed after {seconds:.2f} s"
        attempt = Attempt(what, lambda: None, lambda s=seconds: read(s), right.__eq__)
        yield attempt._replace(seconds=120.0)


def soak(folder: pathlib.Path, rng: random.Random, number: int) -> Iterator[Attempt]:
    """Requests one after another: the same one has the same answer, and memory stays."""
    case = _Case(folder)
    case.build()
    known: dict[tuple, str] = {}
    start: list[int] = []

    def ask(ids: tuple[str, ...], question: str) -> tuple[tuple, str]:
        return (ids, question), "".join(session.answer(case.open(ids), question, 6))

    def right(found: tuple[tuple, str]) -> bool:
        request, said = found
        if len(known) == 200:  # programs are compiled by then
            start[:] = start or [resident()]
        grown = resident() - start[0] if start else 0
        return known.setdefault(request, said) == said and grown < GROWTH

    several = [tuple(rng.sample(case.ids, rng.randint(1, 8))) for _ in range(200)]
    for i in range(number):
        # Each set of documents with one question, again and again, in another order.
        ids = several[i % len(several)]
        question = QUESTIONS[i % len(several) % len(QUESTIONS)]
        yield Attempt(
            f"request {i}",
            lambda: None,
            lambda ids=ids, question=question: ask(ids, question),
            right,
        )
