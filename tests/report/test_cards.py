"""A card's table and figure, and that the README shows the shipped one."""

import io
import pathlib
import xml.etree.ElementTree

import pytest
from rich.console import Console

from kvpacket_jax import adapters
from kvpacket_jax.adapters import card
from kvpacket_jax.adapters.card import ADAPTER, BARE, PRIMER, Card, Row, Score
from kvpacket_jax.report import cards

ROOT = pathlib.Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
NEVER = Score(0.0, 0.0, 0.0, 0.0, 9.0)


def row(kind: str, right: float, guarded: float | None) -> Row:
    score = Score(0.5, 0.9, right, right, 0.1, None if guarded is None else 0.25, guarded)
    scores = {ADAPTER: score, PRIMER: score._replace(same_right=right / 2), BARE: NEVER}
    return Row(kind, 5, 100, 40, 0.5, scores)


def markers(svg: str, style: str = "") -> list[tuple[str, float, float]]:
    """Style and place of each marker, the legend's too; letters have no style."""
    uses = xml.etree.ElementTree.fromstring(svg).iter(f"{SVG}use")
    found = [(use.get("style", ""), use) for use in uses]
    return [
        (look, float(use.get("x")), float(use.get("y")))
        for look, use in found
        if look and style in look
    ]


def hollow(svg: str) -> int:
    return len(markers(svg, "fill-opacity: 0; stroke: #d55e00"))


def test_a_kind_is_a_row_in_the_order_of_the_config():
    rows = [row("own_docs", 0.5, 0.75), row("mine", 0.25, None), row("five lives", 0.75, 1.0)]
    console = Console(file=io.StringIO(), width=110)
    console.print(cards.table(rows))
    shown = console.file.getvalue()
    places = [shown.index(name) for name in ("five biographies", "everyday documents", "mine")]
    assert places == sorted(places) and shown.count("adapter") == len(rows)
    drawn = cards.figure(Card("m", rows, ""))
    for name in ("five biographies (40)", "mine (40)", "its primer"):
        assert f"<!-- {name} -->" in drawn


def test_what_reading_again_does_is_drawn_where_any_kind_has_it():
    known, unknown = row("own_docs", 0.5, 0.75), row("mine", 0.25, None)
    assert hollow(cards.figure(Card("m", [unknown], ""))) == 0
    assert hollow(cards.figure(Card("m", [unknown, known], ""))) == 2


def test_a_card_says_how_its_documents_were_read_and_what_is_in_doubt():
    plain = Card("m", [row("own_docs", 0.5, 0.75)], "", recompute_below=0.5)
    now = plain._replace(best_first=True, elsewhere=True)
    for made, said in ((plain, False), (now, True)):
        assert ("most like the question first" in cards.legend(made)) is said
        assert ("in another document" in cards.legend(made)) is said
        assert ("in another document" in cards.figure(made)) is said


def test_what_is_not_known_is_not_shown_as_0():
    known, unknown = row("own_docs", 0.5, 0.75), row("mine", 0.25, None)
    for way, score in unknown.scores.items():
        unknown.scores[way] = score._replace(same_right=None)
    known, unknown = known._replace(right=20, left_out=2), unknown._replace(right=0, left_out=1)
    card = Card("m", [known, unknown], "")
    drawn, legend = cards.figure(card), cards.legend(card)
    assert "<!-- everyday documents (20) -->" in drawn and "<!-- mine (0) -->" in drawn
    assert "Left out: 3 questions" in legend and "that it gets right" in drawn
    assert len(markers(drawn)) == len(markers(cards.figure(Card("m", [known], ""))))
    console = Console(file=io.StringIO(), width=130)
    console.print(cards.table([unknown]))
    assert "40 (0)" in console.file.getvalue() and "None" not in console.file.getvalue()


def test_an_adapter_without_a_primer_has_no_row_of_it():
    with_one = row("own_docs", 0.5, None)
    without = with_one._replace(scores=with_one.scores | {PRIMER: NEVER})
    assert cards.table([with_one]).row_count == 3 and cards.table([without]).row_count == 2
    name = f"<!-- {cards.NAMES[PRIMER]} -->"
    assert name in cards.figure(Card("m", [with_one], ""))
    assert name not in cards.figure(Card("m", [without], ""))


def test_the_readme_shows_the_shipped_card():
    (name,) = [name for name in adapters.shipped() if not name.endswith("-tokens")]
    committed = (ROOT / "results" / "card.svg").read_text()
    drawn = cards.figure(adapters.known_card(name))
    for one in adapters.known_card(name).rows:
        number = one.questions if one.right is None else one.right
        assert f"<!-- {one.plain_kind} ({number}) -->" in committed
    for ours, theirs in zip(markers(drawn), markers(committed), strict=True):
        assert ours[0] == theirs[0] and ours[1:] == pytest.approx(theirs[1:], abs=1.0)
    assert "results/card.svg" in (ROOT / "README.md").read_text()


def test_what_is_no_card_of_an_adapter_is_told(tmp_path):
    (name,) = [name for name in adapters.shipped() if not name.endswith("-tokens")]
    with pytest.raises(FileNotFoundError, match=r"has no card: there is no .*absent\.json"):
        adapters.known_card(name, tmp_path / "absent.json")
    with pytest.raises(ValueError, match="the card of another adapter"):
        adapters.known_card(f"{name}-tokens", adapters.folder(name) / card.FILE)


def test_an_adapter_in_a_bucket_is_looked_for_there():
    assert str(adapters.folder("gs://bucket/run/adapter")) == "gs://bucket/run/adapter"
