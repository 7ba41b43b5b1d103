"""The README's picture is the one that the code draws."""

import pathlib
import xml.etree.ElementTree

from kvpacket_jax.report import idea

ROOT = pathlib.Path(__file__).parents[2]


def test_the_committed_picture_is_drawn_by_this_code():
    assert (ROOT / "results" / "idea.svg").read_text() == idea.svg()
    xml.etree.ElementTree.fromstring(idea.svg())
    assert "results/idea.svg" in (ROOT / "README.md").read_text()
