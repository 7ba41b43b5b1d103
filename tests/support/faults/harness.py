"""Injects faults and counts what comes of them, in a process of its own that may hang or crash.

A fault is right if what is read is as it was, or is refused in words; anything else is a finding.
"""

import io
import logging
import multiprocessing
import pathlib
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

REFUSED = (ValueError, OSError)  # ours, and the system's; with words
FINDINGS = ("wrong", "lost", "traceback", "memory", "hang")
SECONDS = 10.0  # that an attempt may take
MEMORY = 500 * 2**20  # that it may take above the start, in bytes
START = 300.0  # seconds until the first attempt: importing, building, compiling


class Attempt(NamedTuple):
    """One fault."""

    what: str  # for a finding's message
    inject: Callable[[], None]
    read: Callable[[], object]
    right: Callable[[object], bool]  # of what was read
    mend: Callable[[], None]  # puts back what was damaged; what else has changed is lost
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
    findings = _attempt(attempt)
    if lost := _restore(folder, pristine):
        findings.append(Finding("lost", attempt.what, f"changed or gone: {', '.join(lost)}"))
    return findings


def _attempt(attempt: Attempt) -> list[Finding]:
    attempt.inject()
    before, began = resident(reset=True), time.monotonic()
    outcome, words = None, ""
    try:
        value = attempt.read()
        if not attempt.right(value):
            outcome, words = "wrong", f"was read as {str(value)[:200]}"
    except REFUSED as error:
        if not str(error).strip() or isinstance(error, UnicodeError):
            outcome, words = "traceback", repr(error)
    except Exception as error:
        outcome, words = "traceback", f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        attempt.mend()
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


def _restore(folder: pathlib.Path, pristine: dict[pathlib.Path, bytes]) -> list[str]:
    """Puts every file back; returns the names of those that were not as they had been."""
    lost = []
    for path, data in pristine.items():
        if not path.exists() or path.stat().st_size != len(data) or path.read_bytes() != data:
            lost.append(path.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for path in folder.rglob("*"):
        if path.is_file() and path not in pristine and path.suffix != ".lock":
            path.unlink()
    return lost


def in_file(
    path: pathlib.Path, data: bytes, read: Callable[[], object], right: Callable[[object], bool]
) -> Attempt:
    """`data` in place of a file's bytes."""
    whole = path.read_bytes()
    what = f"{path.name}, {_difference(whole, data)}"
    return Attempt(
        what, lambda: path.write_bytes(data), read, right, lambda: path.write_bytes(whole)
    )


def without_file(path: pathlib.Path, read, right) -> Attempt:
    """A file that is gone, or a folder."""
    aside = path.with_name(path.name + ".aside")
    return Attempt(
        f"{path.name} is gone",
        lambda: shutil.move(path, aside),
        read,
        right,
        lambda: shutil.move(aside, path),
    )


def _difference(old: bytes, new: bytes) -> str:
    place = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
    if place is None:
        return f"cut to {len(new)} of {len(old)} bytes" if len(new) < len(old) else "longer"
    return f"from byte {place} of {len(old)}"
