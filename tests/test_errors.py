"""An error ends a program in its own words; --verbosity=1 shows where it came from."""

import pytest
from absl import logging

from launch import errors


@pytest.fixture
def verbosity():
    before = logging.get_verbosity()
    yield logging.set_verbosity
    logging.set_verbosity(before)


@pytest.mark.parametrize("kind", errors.EXPECTED)
def test_an_error_ends_in_its_own_words(kind):
    with pytest.raises(SystemExit, match="the store is empty") as ended, errors.in_one_line():
        raise kind("the store is empty")
    likely_a_mistake_in_code = kind in (TypeError, RuntimeError)
    assert ("--verbosity=1" in str(ended.value)) == likely_a_mistake_in_code


def test_verbosity_shows_where(verbosity):
    def read():
        raise ValueError("the store is empty")

    verbosity(logging.DEBUG)
    with pytest.raises(ValueError, match="the store is empty") as raised, errors.in_one_line():
        read()
    assert "read" in [entry.name for entry in raised.traceback]
