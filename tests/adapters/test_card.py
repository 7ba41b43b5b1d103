"""What an adapter's card says of a request."""

import json
import types

import pytest

import models
from kvpacket_jax import adapters
from kvpacket_jax.adapters import card
from kvpacket_jax.adapters.card import Card, Row, Score
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.runtime import sealed

NEVER = Score(0.0, 0.0, 0.0, 0.0, 9.0)


def row(kind: str, documents: int, tokens: int, same_right: float) -> Row:
    score = Score(0.5, 1.0, same_right, same_right, 0.1)
    return Row(kind, documents, tokens, 100, 0.5, {card.ADAPTER: score, card.BARE: NEVER})


CARD = Card(
    "m", [row("lives", 5, 100, 0.95), row("prose", 5, 300, 0.8), row("many", 20, 100, 0.6)], ""
)


@pytest.mark.parametrize(
    ("documents", "tokens", "least", "said"),
    [
        (5, 100, 0.75, ""),
        (5, 100, 0.9, "80% (prose) to 95% (lives)"),  # of the kinds with as many documents
        (2, 300, 0.9, "prose"),
        (6, 100, 0.5, ""),
        (6, 100, 0.9, "60% (many) of the right answers"),
        (6, 100, 0.9, ". Other kinds and sizes: 80% (prose) to 95% (lives). --min_agreement=0"),
        (6, 101, 0.1, "does not cover 6 documents of up to 101 tokens"),
        (21, 10, 0.1, "only up to 5 of 300 or 20 of 100"),
    ],
)
def test_a_request_is_judged_by_kinds_that_are_as_large(documents, tokens, least, said):
    line = card.remark(CARD, "mine", "m", "chat", documents, tokens, least)
    assert said in line and bool(line) == bool(said) and "\n" not in line


def test_a_card_with_openings_promises_nothing_of_stores_without():
    measured, given = CARD._replace(best_first=True), ("mine", "m", "chat", 5, 100, 0.1)
    assert card.remark(measured, *given, best_first=True) == ""
    assert "--noopenings" in card.remark(measured, *given)
    assert card.remark(CARD, *given, best_first=True) == ""  # which is not less near


def test_what_reading_again_does_is_said_where_it_was_measured():
    rows = [row("lives", 5, 100, 0.7), row("prose", 5, 300, 0.8)]
    for r, reread, guarded in ((rows[0], 0.4, 0.95), (rows[1], 0.2, 0.9)):
        known = r.scores[card.ADAPTER]
        r.scores[card.ADAPTER] = known._replace(reread=reread, guarded_right=guarded)
    line = card.remark(Card("m", rows, ""), "mine", "m", "chat", 5, 100, 0.9)
    assert "70% (lives) to 80% (prose) of the right answers" in line
    assert "read again" not in line  # at another limit than was asked for
    measured = Card("m", rows, "", recompute_below=0.5, elsewhere=True)
    line = card.remark(measured, "mine", "m", "chat", 5, 100, 0.9, 0.5)
    assert "answers that reading in full gives, or 90% to 95% if documents are read again" in line
    assert "in doubt" not in card.remark(measured, "mine", "m", "chat", 5, 100, 0.9, 0.3)
    unknown = [*rows, row("many", 5, 100, 0.9)]
    for other in (measured._replace(rows=unknown), measured._replace(elsewhere=False)):
        assert "in doubt" not in card.remark(other, "mine", "m", "chat", 5, 100, 0.9, 0.5)


def test_kinds_that_are_worse_than_without_an_adapter_are_named():
    worse = row("prose", 5, 100, 0.5)
    worse.scores[card.BARE] = NEVER._replace(same_right=0.6)
    rows = [row("lives", 5, 100, 0.7), worse, row("own_docs", 5, 400, 0.9)]
    line = card.remark(Card("m", rows, ""), "mine", "m", "chat", 5, 100, 0.9)
    assert " Bare packets (built and asked with --adapter=none) did better on prose. " in line
    assert "--adapter=none" not in card.remark(
        Card("m", rows, ""), "mine", "m", "chat", 5, 300, 0.95
    )


@pytest.mark.parametrize(
    ("known", "model", "said"),
    [(None, "m", "mine has no card, or one of another"), (CARD, "n", "mine is of m, not n: how")],
)
def test_without_a_card_for_the_model_nothing_is_known(known, model, said):
    assert said in card.remark(known, "mine", model, "chat", 1, 10, 0.9)


def test_a_kind_that_the_full_context_never_has_right_judges_nothing():
    unknown = row("prose", 5, 300, 0.8)
    for way, score in unknown.scores.items():
        unknown.scores[way] = score._replace(same_right=None)
    rows = [row("lives", 5, 100, 0.7), unknown]
    line = card.remark(Card("m", rows, ""), "mine", "m", "chat", 5, 100, 0.9)
    assert "70% (lives)" in line and "prose" not in line
    line = card.remark(Card("m", rows, ""), "mine", "m", "chat", 5, 200, 0.9)
    assert "only up to 5 of 100" in line
    line = card.remark(Card("m", rows[1:], ""), "mine", "m", "chat", 5, 100, 0.9)
    assert "was never right" in line


def test_the_cards_of_primers_lie_in_the_cache_folder(tmp_path):
    model = types.SimpleNamespace(name=str(tmp_path / "llama"), fingerprint="f" * 64)
    path = adapters.card_path(model, adapters.PRIMER)
    assert path.is_relative_to(models.default_cache_dir().parent) and path.stem == "f" * 16


def test_a_card_says_nothing_of_another_template():
    line = card.remark(CARD, "mine", "m", "chat_reasoning", 5, 100, 0.1)
    assert "is of the template chat, not chat_reasoning" in line
    assert "launch.card --config.template=chat_reasoning" in line


def test_earlier_cards_are_of_the_template_chat(tmp_path):
    folder = adapters.folder("qwen2.5-coder-0.5b")
    known = json.loads((folder / card.FILE).read_text())
    earlier = {name: known[name] for name in known if name not in ("template", sealed.KEY)}
    (tmp_path / card.FILE).write_text(json.dumps(sealed.stamped(earlier)))
    read = card.read(tmp_path / card.FILE, adapter_lib.load_adapter(folder))
    assert read.template == "chat" and len(read.rows) == len(known["rows"])


def test_a_default_keeps_no_fewer_answers_than_its_primer_and_more_than_none():
    (name,) = [name for name in adapters.shipped() if not name.endswith("-tokens")]
    assert adapters.default_for(name) == name
    known = card.read(
        adapters.folder(name) / card.FILE, adapter_lib.load_adapter(adapters.folder(name))
    )
    assert known.model == name and len(known.rows) >= 9  # it is of this adapter, and whole
    for row in known.rows:
        trained, primer, bare = (row.scores[w] for w in (card.ADAPTER, card.PRIMER, card.BARE))
        assert trained.same >= primer.same and trained.same > bare.same, row.kind
        assert trained.same_right >= primer.same_right > bare.same_right, row.kind
        # F1 beyond the full context's does not count as kept.
        assert trained.f1 >= min(primer.f1, row.full_f1) and trained.f1 > bare.f1, row.kind
