"""A card's table and figure, and that the README shows the shipped one."""

import io
import pathlib
import xml.etree.ElementTree

from rich.console import Console

from kvpacket_jax import adapters
from kvpacket_jax.adapters import card
from kvpacket_jax.adapters.card import ADAPTER, BARE, PRIMER, Card, Row, Score
from kvpacket_jax.report import cards

ROOT = pathlib.Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def row(kind: str, right: float, guarded: float | None) -> Row:
    score = Score(0.5, 0.9, right, right, 0.1, None if guarded is None else 0.25, guarded)
    bare = score._replace(same_right=right / 2)
    return Row(kind, 5, 100, 40, 0.5, {ADAPTER: score, PRIMER: bare, BARE: bare})


def hollow(svg: str) -> int:
    """How many hollow markers are drawn, one in the legend."""
    uses = xml.etree.ElementTree.fromstring(svg).iter(f"{SVG}use")
    return sum(use.get("style") == "fill-opacity: 0; stroke: #d55e00" for use in uses)


def test_a_kind_is_a_row_in_the_order_of_the_config():
    rows = [row("own_docs", 0.5, 0.75), row("mine", 0.25, None), row("five lives", 0.75, 1.0)]
    console = Console(file=io.StringIO(), width=110)
    console.print(cards.table(rows))
    shown = console.file.getvalue()
    places = [shown.index(name) for name in ("five biographies", "everyday documents", "mine")]
    assert places == sorted(places) and shown.count("adapter") == len(rows)
    drawn = cards.figure(Card("m", rows, ""))
    for name in ("five biographies (40)", "mine (40)", "its primer alone"):
        assert f"<!-- {name} -->" in drawn


def test_what_reading_again_does_is_drawn_where_any_kind_has_it():
    known, unknown = row("own_docs", 0.5, 0.75), row("mine", 0.25, None)
    assert hollow(cards.figure(Card("m", [unknown], ""))) == 0
    assert hollow(cards.figure(Card("m", [unknown, known], ""))) == 2


def test_the_readme_shows_the_shipped_card():
    (name,) = [name for name in adapters.shipped() if not name.endswith("-tokens")]
    drawn = (ROOT / "results" / "card.svg").read_text()
    for one in adapters.known_card(name).rows:
        assert f"<!-- {card.PLAIN[one.kind]} ({one.questions}) -->" in drawn
    assert "results/card.svg" in (ROOT / "README.md").read_text()
