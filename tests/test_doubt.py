"""Which answers from packets are in doubt."""

import pytest

from kvpacket_jax import doubt

FERRY = "The ferry to Lune leaves at 7:40\nfrom pier 3."
BUS = "The bus to Lune leaves at noon from Main Street, in winter at one."
QUESTION = "When does the ferry to Lune leave?"


@pytest.mark.parametrize(
    ("answer", "elsewhere"),
    [
        ("at noon", True),
        ("NOON.", True),
        ("7:40", False),
        ("at 7:40 from pier 3", False),  # over the end of a line
        ("Lune", False),  # in both
        ("in winter", True),
        ("win", False),  # part of a word is none
        ("midnight", False),  # in neither
        ("", False),
        ("…", False),
    ],
)
def test_what_stands_in_another_document_is_elsewhere(answer, elsewhere):
    for documents in ([FERRY, BUS], [BUS, FERRY], [BUS, FERRY, BUS]):
        assert doubt.is_elsewhere(answer, documents, QUESTION) is elsewhere
    assert not doubt.is_elsewhere(answer, [FERRY], QUESTION)


def test_unlikely_answers_and_those_that_are_elsewhere_are_in_doubt():
    assert doubt.is_in_doubt(0.29, False, 0.3) and not doubt.is_in_doubt(0.3, False, 0.3)
    assert doubt.is_in_doubt(1.0, True, 0.3)
    assert not doubt.is_in_doubt(0.0, True, 0.0), "0 is never"
    assert "0.29" in doubt.reason(0.29, False)
    assert "another document" in doubt.reason(1.0, True)
