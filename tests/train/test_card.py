"""A card: its answers are those that served packets give, with the adapter, its primer and bare."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import models
from kvpacket_jax import data
from kvpacket_jax.adapters import card
from kvpacket_jax.answer_text import whole
from kvpacket_jax.data.order import best_first
from kvpacket_jax.evaluate import metrics
from kvpacket_jax.methods import METHODS
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets import distiller
from kvpacket_jax.packets.compose import compose
from kvpacket_jax.packets.prefill import prefill
from kvpacket_jax.runtime.progress import Progress
from kvpacket_jax.teacher import teach
from kvpacket_jax.train.card import measure, write_measured
from models import low_rank
from tests.support import byte_train
from tests.support.training import texts

NEW_TOKENS = byte_train.SIZES["new_tokens"]
SETS = 3


@pytest.fixture(scope="module")
def model(byte_model):
    return models.load(str(byte_model), "float32")


@pytest.fixture(scope="module")
def adapter(model):
    factors = low_rank.init(model.config, jax.random.key(0), 2, ("q", "v"))
    factors = jax.tree.map(lambda x: x + 0.3, factors)
    primer = jnp.array(model.tokenizer.encode("Read before."), jnp.int32)
    empty = adapter_lib.empty(model.config.dim)
    return empty._replace(primer=primer, writer=factors)


@pytest.fixture(scope="module")
def config(byte_model) -> ConfigDict:
    whole = byte_train.get_config(str(texts(byte_model)))
    kinds = {"it": whole.validation.it.to_dict() | {"sets": SETS}}
    given = {"template": "completion", "batch_size": 2, "opening": True}
    return ConfigDict(given | {"validation": kinds})


def served(model, adapter, example) -> tuple[list[str], list[float]]:
    """The answers of packets as requests read them, and how sure each is."""
    encoded = data.encode_example(model.tokenizer, data.TEMPLATES["completion"], example)
    method = METHODS["kv_packet"](adapter=adapter)
    packets = method.build(model, encoded.preamble, encoded.documents)
    context, start = compose(model, packets)
    ready = prefill(model, (context,), encoded.questions, start, NEW_TOKENS)
    template = data.TEMPLATES["completion"]
    said = whole(model, (context,), ready, example.questions, template, NEW_TOKENS)
    return [each.text for each in said], [each.confidence for each in said]


def with_answers(example: data.Example, answers: list[str]) -> data.Example:
    questions = zip(example.questions, answers, strict=True)
    changed = tuple(dataclasses.replace(q, answers=(answer,)) for q, answer in questions)
    return dataclasses.replace(example, questions=changed)


def test_a_card_has_the_answers_that_served_packets_give(model, adapter, config, monkeypatch):
    """They become the gold answers, or a random model would never be right."""
    variants = {card.ADAPTER: adapter, card.PRIMER: adapter._replace(writer=None), card.BARE: None}
    source = data.load("jsonl", "validation", path=config.validation["it"].options.path)[:SETS]
    source = [part for example in source for part in best_first(example)]
    assert len({x.id[-7:] for x in source}) == 2, "in some the order changes"
    for name, parts in variants.items():
        answers, sure = zip(*(served(model, parts, x) for x in source), strict=True)
        examples = [with_answers(x, texts) for x, texts in zip(source, answers, strict=True)]
        monkeypatch.setattr(data, "load", lambda *_, examples=examples, **__: examples)
        sure = sorted(p for each in sure for p in each)
        monkeypatch.setattr(
            "kvpacket_jax.train.card.RECOMPUTE_BELOW", sure[1] * 1.001
        )  # the least sure two
        (row,) = measure(model, adapter, config)
        assert row.questions == SETS and row.scores[name].f1 == 1.0, name
        assert row.scores[name].reread == 2 / SETS, name
    monkeypatch.setattr("kvpacket_jax.train.card.is_elsewhere", lambda *_: True)
    (row,) = measure(model, adapter, config)
    assert row.scores[card.ADAPTER].reread == 1.0, "however sure they are"


def test_answers_that_are_the_full_contexts_are_its_texts(model, adapter, config, monkeypatch):
    """One document that is built after what stands before it: the packets are the full context."""
    source = data.load("jsonl", "validation", path=config.validation["it"].options.path)[:SETS]
    alone = [dataclasses.replace(x, documents=x.documents[:1]) for x in source]
    template = data.TEMPLATES["completion"]
    encoded = [data.encode_example(model.tokenizer, template, x) for x in alone]
    (preamble,) = {tuple(x.preamble) for x in encoded}
    known = []
    for example, ids in zip(alone, encoded, strict=True):
        said = map(model.tokenizer.decode, teach(model, ids, NEW_TOKENS).answers)
        known.append(with_answers(example, list(map(template.answer, example.questions, said))))
    monkeypatch.setattr(data, "load", lambda *_, **__: known)
    same = adapter._replace(writer=None, primer=jnp.array(preamble, jnp.int32))
    plain = ConfigDict(config.to_dict() | {"opening": False})
    for parts, measured_by in ((same, plain), (adapter, config)):  # that which comes first has it
        (row,) = measure(model, parts, measured_by)
        score = row.scores[card.ADAPTER]
        assert score.same == 1 and score.f1 == row.full_f1 == 1
        np.testing.assert_allclose(score.kl, 0, atol=1e-4)


def test_without_right_answers_the_full_contexts_are_right(model, adapter, config, monkeypatch):
    source = data.load("jsonl", "validation", path=config.validation["it"].options.path)[:SETS]
    unanswered = [
        dataclasses.replace(
            x, questions=tuple(dataclasses.replace(q, answers=()) for q in x.questions)
        )
        for x in source
    ]
    monkeypatch.setattr(data, "load", lambda *_, **__: unanswered)
    (row,) = measure(model, adapter, config)
    assert row.full_f1 == 1 and all(s.same == s.same_right for s in row.scores.values())
    assert row.right == row.questions == SETS and row.left_out == 0
    never = [with_answers(x, ["never said"] * len(x.questions)) for x in source]
    monkeypatch.setattr(data, "load", lambda *_, **__: never)
    (row,) = measure(model, adapter, config)
    assert row.right == 0 and {s.same_right for s in row.scores.values()} == {None}


def test_answers_without_room_are_counted_or_refused(model, adapter, config):
    """A random model's answers are as long as they may be."""
    kind = config.validation.it.to_dict() | {"answers": NEW_TOKENS - 1}
    config = ConfigDict(config.to_dict() | {"validation": {"it": kind}})
    with pytest.raises(ValueError, match="No answer of it has room"):
        list(measure(model, adapter, config))


def test_a_primer_is_its_own_primer_alone(model, adapter, config):
    (row,) = measure(model, adapter._replace(writer=None), config)
    (trained,) = measure(model, adapter, config)
    assert row.scores[card.ADAPTER] == row.scores[card.PRIMER] == trained.scores[card.PRIMER]


def test_a_card_is_of_whole_packets_whatever_a_distiller_would_keep(model, adapter, config):
    made = distiller.init(model.config, jax.random.key(0), 2)
    kept = jax.tree.map(lambda x: x + 0.3, made.kept)
    with_one = adapter._replace(distiller=made._replace(kept=kept))
    assert list(measure(model, with_one, config)) == list(measure(model, adapter, config))


def test_a_card_is_read_for_its_own_adapter_alone(model, adapter, config, tmp_path):
    made = write_measured(tmp_path / card.FILE, model, adapter, config)
    assert card.read(tmp_path / card.FILE, adapter) == made and made.model == model.name
    assert card.read(tmp_path / card.FILE, adapter._replace(writer=None)) is None
    assert card.read(tmp_path / "none.json", adapter) is None


def test_what_was_measured_is_not_measured_again(model, adapter, config, tmp_path, monkeypatch):
    kinds = config.validation.to_dict()
    two = ConfigDict(config.to_dict() | {"validation": kinds | {"that": kinds["it"]}})
    path, whole, said = tmp_path / card.FILE, list(measure(model, adapter, two)), []

    def stop(text):
        if text.startswith("that"):
            raise KeyboardInterrupt

    told, stopped = Progress(), Progress()
    told.say, stopped.say = said.append, stop
    with pytest.raises(KeyboardInterrupt):
        write_measured(path, model, adapter, two, stopped)
    assert not path.exists()
    assert write_measured(path, model, adapter, two, told).rows == whole
    assert said == ["Measured before: it", f"that: {SETS} sets of documents"]
    assert [x.name for x in tmp_path.iterdir()] == [card.FILE]

    with pytest.raises(KeyboardInterrupt):
        write_measured(path, model, adapter, two, stopped)
    said.clear()
    other = two.copy_and_resolve_references()
    other.validation.that.sets = SETS - 1
    measured = path.read_bytes()
    with pytest.raises(ValueError, match="measured with other settings .*: give --output=FILE"):
        write_measured(path, model, adapter, other, told)
    assert path.read_bytes() == measured and not said
    path.unlink()
    write_measured(path, model, adapter, other, told)
    assert said[0].startswith("it"), "what another config measured does not count"


def test_an_adapter_whose_logits_are_not_finite_has_no_card(model, adapter, config):
    broken = adapter._replace(writer=jax.tree.map(lambda x: x * np.nan, adapter.writer))
    with pytest.raises(ValueError, match="logits of .* are not finite"):
        list(measure(model, broken, config))


def test_full_context_f1_is_the_teachers(model, adapter, config):
    (row,) = measure(model, adapter, config)
    source = data.load("jsonl", "validation", path=config.validation["it"].options.path)[:SETS]
    template, scores = data.TEMPLATES["completion"], []
    for example in source:
        encoded = data.encode_example(model.tokenizer, template, example)
        (ids,) = teach(model, encoded, NEW_TOKENS).answers
        said = template.answer(example.questions[0], model.tokenizer.decode(ids))
        scores.append(metrics.f1(said, example.questions[0].answers))
    np.testing.assert_allclose(row.full_f1, np.mean(scores), atol=1e-6)
