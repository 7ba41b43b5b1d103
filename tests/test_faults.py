"""A short `make faults`, and that its harness finds what is to be found."""

import random

import pytest

from tests.support.faults import __main__ as program
from tests.support.faults import careless, harness


# Two builders are processes of their own: tests/serve/test_build.py kills some.
@pytest.mark.parametrize("name", sorted(program.CLASSES.keys() - {"killed_builders"}))
def test_a_fault_is_refused_in_words_or_changes_nothing(name, tmp_path):
    faults, _ = program.CLASSES[name]
    number = 4 if name == "full_disk" else 24  # it builds a store each time
    attempts = faults(tmp_path / "it", random.Random("in a test"), number)
    for attempt in harness.checked(attempts):
        # A hang is for `make faults` to find: a busy machine may take longer than it allows.
        assert not harness.inject(tmp_path, attempt._replace(seconds=float("inf")))


def test_the_harness_finds_what_goes_wrong():
    tally = harness.run("careless", careless.careless, seed=0, number=8)
    counts = {outcome: tally.counts()[outcome] for outcome in harness.FINDINGS}
    assert counts == dict.fromkeys(harness.FINDINGS, 1) | {"traceback": 2}
    assert tally.faults == 8


def test_what_is_set_aside_is_not_lost_and_what_is_removed_is(tmp_path):
    path = tmp_path / "rows.jsonl"
    other = tmp_path / "6" / "state"
    other.parent.mkdir()
    other.write_bytes(b"of step 6")
    path.write_bytes(b"one\ntwo\nthree\n")
    pristine = {p: p.read_bytes() for p in (path, other)}

    def read_and(change) -> list[str]:
        def read():
            change()
            raise ValueError(f"{path.name} is damaged")

        attempt = harness.in_file(path, b"one\ntw0\nthree\n", read, lambda found: True)
        found = harness.inject(tmp_path, attempt)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == pristine
        return [f"{f.outcome} {f.words}" for f in found]

    assert not read_and(lambda: other.parent.rename(tmp_path / "damaged-6"))
    assert not read_and(lambda: path.rename(tmp_path / "rows.jsonl.damaged"))
    (lost,) = read_and(lambda: path.write_bytes(b"one\nthree\n"))  # even if it is damaged
    assert lost == "lost changed or gone: a line of rows.jsonl, b'tw0'"
    (lost,) = read_and(other.unlink)
    assert lost == "lost changed or gone: state"
