"""Injects faults and counts what comes of them, in a process of its own that may hang or crash.

A fault is right if what is read is as it was, or is refused in one line that names the damaged
file, and if nothing else is gone from the disk; anything else is a finding.
"""

import contextlib
import io
import logging
import multiprocessing
import pathlib
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

REFUSED = (ValueError, OSError)  # ours, and the system's; with words
FINDINGS = ("wrong", "lost", "unnamed", "traceback", "memory", "hang")
SECONDS = 10.0  # that an attempt may take
MEMORY = 500 * 2**20  # that it may take above the start, in bytes
START = 300.0  # seconds until the first attempt: importing, building, compiling


class Attempt(NamedTuple):
    """One fault."""

    what: str  # for a finding's message
    inject: Callable[[], None]
    read: Callable[[], object]
    right: Callable[[object], bool]  # of what was read
    path: pathlib.Path | None = None  # the file that is damaged
    named: tuple[str, ...] = ()  # a refusal has one of them in its words
    seconds: float = SECONDS  # that it may take


class Finding(NamedTuple):
    outcome: str  # of FINDINGS
    what: str
    words: str


class Tally(NamedTuple):
    """Of one class of faults."""

    name: str
    faults: int
    findings: list[Finding]
    seconds: float

    def counts(self) -> Counter:
        return Counter(f.outcome for f in self.findings)


# Makes what is to be damaged in a folder, and yields so many faults.
Faults = Callable[[pathlib.Path, random.Random, int], Iterator[Attempt]]


def run(name: str, faults: Faults, seed: int, number: int, say=lambda text: None) -> Tally:
    """Runs `number` faults; after a hang or a crash it goes on behind the fault that caused it."""
    began, first, findings = time.monotonic(), 0, []
    context = multiprocessing.get_context("spawn")
    while first < number:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = context.Pipe()
            arguments = (faults, pathlib.Path(folder), f"{name}:{seed}", number, first, theirs)
            worker = context.Process(target=_work, args=arguments, daemon=True)
            worker.start()
            theirs.close()
            first = _follow(worker, ours, number, first, findings, say)
            worker.kill()
            worker.join()
    return Tally(name, number, findings, time.monotonic() - began)


def _follow(worker, pipe, number: int, first: int, findings: list[Finding], say) -> int:
    """Collects what a worker finds until it has ended; returns the next fault's number."""
    patience, current = START, None  # the fault under way: number, what it is, seconds
    while True:
        try:
            if not pipe.poll(patience):
                if current is None:
                    raise RuntimeError(f"No fault was injected within {START:.0f} s.")
                findings.append(Finding("hang", current[1], f"no end within {patience:.0f} s"))
                break
            message = pipe.recv()
        except (EOFError, OSError):
            worker.join()
            if current is None:
                raise RuntimeError(
                    f"The faults' process ended with status {worker.exitcode} before the first."
                ) from None
            words = f"the process ended with status {worker.exitcode}"
            findings.append(Finding("traceback", current[1], words))
            break
        if message is None:
            return number
        if isinstance(message, str):
            raise RuntimeError(message)
        if isinstance(message, Finding):
            findings.append(message)
            say(f"{message.outcome}: {message.what}: {message.words}")
        else:
            current, patience = message, message[2]
    return current[0] + 1


def _work(faults: Faults, folder: pathlib.Path, seed: str, number: int, first: int, pipe) -> None:
    logging.disable(logging.CRITICAL)  # thousands of warnings that are right
    sys.stderr = io.StringIO()  # and as many progress bars
    try:
        attempts = faults(folder / "it", random.Random(seed), number)
        for i, attempt in enumerate(checked(attempts)):
            if i >= first:
                pipe.send((i, attempt.what, attempt.seconds))
                for finding in inject(folder, attempt):
                    pipe.send(finding)
        pipe.send(None)
    except Exception:  # of the faults themselves
        pipe.send(traceback.format_exc())


def checked(attempts: Iterator[Attempt]) -> Iterator[Attempt]:
    """The attempts; before the first, what is not damaged must be read rightly.

    That also compiles, and fills caches, before memory is looked at.
    """
    for i, attempt in enumerate(attempts):
        if not i:
            assert attempt.right(attempt.read()), "what is not damaged is not read rightly"
        yield attempt


def inject(folder: pathlib.Path, attempt: Attempt) -> list[Finding]:
    """One fault in a folder; what came of it, if it was not right."""
    pristine = _keep(folder)
    attempt.inject()
    damaged = attempt.path.read_bytes() if attempt.path and attempt.path.exists() else b""
    findings = _attempt(attempt)
    after = _keep(folder)
    if lost := _lost(pristine, after, attempt.path, damaged):
        findings.append(Finding("lost", attempt.what, f"changed or gone: {', '.join(lost)}"))
    _restore(pristine, after)
    return findings


def _attempt(attempt: Attempt) -> list[Finding]:
    before, began = resident(reset=True), time.monotonic()
    outcome, words = None, ""
    try:
        value = attempt.read()
        if not attempt.right(value):
            outcome, words = "wrong", f"was read as {str(value)[:200]}"
    except REFUSED as error:
        words = str(error)
        if not words.strip() or isinstance(error, UnicodeError):
            outcome, words = "traceback", repr(error)
        elif "\n" in words or not any(name in words for name in attempt.named or ("",)):
            outcome = "unnamed"
    except Exception as error:
        outcome, words = "traceback", f"{type(error).__name__}: {str(error)[:200]}"
    if time.monotonic() - began > attempt.seconds:
        outcome, words = "hang", f"{time.monotonic() - began:.0f} s"
    if (more := resident() - before) > MEMORY:
        outcome, words = "memory", f"{more / 2**20:.0f} MiB more"
    return [Finding(outcome, attempt.what, words)] if outcome else []


def resident(reset: bool = False) -> int:
    """The most bytes that the process had in memory since it was last reset."""
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def _keep(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    """All files' bytes, without those of locks."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")
    return {path: path.read_bytes() for path in files}


def _lost(
    pristine: dict[pathlib.Path, bytes],
    after: dict[pathlib.Path, bytes],
    path: pathlib.Path | None,
    damaged: bytes,
) -> list[str]:
    """What is on the disk no more, under its name or set aside under another.

    Of files: those but the damaged one at `path`. Of that, if it is one of lines: its lines, with
    their damage.
    """
    files = set(after.values())
    lost = [p.name for p, data in pristine.items() if p != path and data not in files]
    if path and path.suffix == ".jsonl":
        left = {line for data in files for line in data.splitlines()}
        gone = set(damaged.splitlines()) - left
        lost += [f"a line of {path.name}, {line[:40]!r}" for line in sorted(gone)]
    return lost


def _restore(pristine: dict[pathlib.Path, bytes], after: dict[pathlib.Path, bytes]) -> None:
    """Puts every file back, and removes all others with the folders that held nothing else."""
    for path in after:
        if pristine.get(path) != after[path]:
            path.unlink()
            with contextlib.suppress(OSError):
                for folder in path.parents:
                    folder.rmdir()
    for path in pristine:
        if after.get(path) != pristine[path]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pristine[path])


def in_file(
    path: pathlib.Path, data: bytes, read: Callable[[], object], right: Callable[[object], bool]
) -> Attempt:
    """`data` in place of a file's bytes."""
    whole = path.read_bytes()
    what = f"{path.name}, {_difference(whole, data)}"
    named = (path.name, f"{path.stem}-")  # itself, or what was converted from it: model-3f2a…
    return Attempt(what, lambda: path.write_bytes(data), read, right, path, named)


def without_file(path: pathlib.Path, read, right) -> Attempt:
    """A file that is gone; a refusal may name what was in it."""
    return Attempt(f"{path.name} is gone", path.unlink, read, right, path)


def _difference(old: bytes, new: bytes) -> str:
    place = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
    if place is None:
        return f"cut to {len(new)} of {len(old)} bytes" if len(new) < len(old) else "longer"
    return f"from byte {place} of {len(old)}"
