"""A short `make faults`, and that its harness finds what is to be found."""

import os
import pathlib
import random
import time

import pytest

from tests.support.faults import __main__ as program
from tests.support.faults import harness


# Two builders are processes of their own: tests/serve/test_build.py kills some.
@pytest.mark.parametrize("name", sorted(program.CLASSES.keys() - {"killed_builders"}))
def test_a_fault_is_refused_in_words_or_changes_nothing(name, tmp_path):
    faults, _ = program.CLASSES[name]
    number = 4 if name == "full_disk" else 24  # it builds a store each time
    attempts = faults(tmp_path / "it", random.Random("in a test"), number)
    for attempt in harness.checked(attempts):
        assert not harness.inject(tmp_path, attempt)


def careless(folder: pathlib.Path, rng, number):
    """A reader that goes wrong in every way that is counted."""
    folder.mkdir()
    path, other = folder / "it", folder / "other"
    path.write_bytes(b"right")
    other.write_bytes(b"mine")

    def read():
        match path.read_bytes():
            case b"lost":
                other.unlink()
                return b"right"
            case b"traceback":
                raise KeyError("it")
            case b"hang":
                time.sleep(600)
            case b"crash":
                os.abort()
            case b"memory":
                return b"right" * (harness.MEMORY // 5 + 2**24)
            case b"refused":
                raise ValueError("the file is damaged")
        return path.read_bytes()

    kinds = (b"wrong", b"lost", b"traceback", b"hang", b"crash", b"memory", b"refused")
    for data in kinds[:number]:
        attempt = harness.in_file(
            path, data, read, lambda found: len(found) > 5 or found == b"right"
        )
        yield attempt._replace(seconds=1.0)


def test_the_harness_finds_what_goes_wrong():
    tally = harness.run("careless", careless, seed=0, number=7)
    counts = {outcome: tally.counts()[outcome] for outcome in harness.FINDINGS}
    assert counts == {"wrong": 1, "lost": 1, "traceback": 2, "memory": 1, "hang": 1}
    assert tally.faults == 7
