"""The log of a run: what a resumed run drops of it, and what it reads after a kill."""

import json

import pytest
from etils import epath

from kvpacket_jax.runtime import sealed
from kvpacket_jax.train.log import Log, read

ROWS = [{"step": step, "loss": 0.5} for step in (1, 2, 3)]


@pytest.fixture
def path(tmp_path) -> epath.Path:
    return epath.Path(tmp_path / "metrics.jsonl")


def test_rows_of_steps_that_are_done_again_go(path):
    log = Log(path, 0)
    for row in ROWS:
        log.write(row)
    log.validation(2, {"it": {"kl": 1.0}})
    log.validation(3, {"it": {"kl": 2.0}})
    log.flush()
    assert len(read(path)) == 5
    assert Log(path, 2).rows == [*ROWS[:2], {"step": 2, "validation/it/kl": 1.0}]
    assert len(read(path)) == 3


def test_a_validation_takes_the_place_of_one_of_the_same_step(path):
    log = Log(path, 0)
    log.write(ROWS[0])
    for kl in (1.0, 2.0):
        log.validation(1, {"it": {"kl": kl}, "other": {"kl": kl}})
    expected = {"step": 1, "validation/it/kl": 2.0, "validation/other/kl": 2.0}
    assert log.rows == [ROWS[0], expected]


def written(*steps: int) -> str:
    """Lines as they are written."""
    return "".join(json.dumps(sealed.stamped({"step": step})) + "\n" for step in steps)


def test_a_last_line_that_was_cut_short_is_left_out(path):
    path.write_text(written(1, 2) + '{"ste')
    assert read(path) == [{"step": 1}, {"step": 2}]
    assert Log(path, 5).rows == read(path) == [{"step": 1}, {"step": 2}]


def test_another_line_that_cannot_be_read_is_named(path):
    changed = written(2).replace("2", "3", 1)
    bad = ('{"ste\n', '{"step": 9}\n', changed)
    for content in (*(written(1) + b + written(2) for b in bad), *(written(1) + b for b in bad)):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*Remove the line"):
            read(path)
