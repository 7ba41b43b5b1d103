"""Fixed shapes: what is cut, what is left out, and which example is drawn instead."""

import dataclasses
import types

import pytest

from configs import train as train_config
from kvpacket_jax.data import TEMPLATES, Example, Question, passages
from kvpacket_jax.data.order import PartlyBestFirst
from kvpacket_jax.train import setup
from kvpacket_jax.train.loss import pack, real_tokens
from kvpacket_jax.train.shapes import Fitted, Shape, draw, fit, fitting
from models.checkpoint import tokenizer

TEMPLATE = TEMPLATES["completion"]
MODEL = types.SimpleNamespace(
    tokenizer=types.SimpleNamespace(encode=lambda text, special=False: list(map(ord, text)))
)
ENDING = len("\n\n")  # of the template, after each document and the preamble
FRAME = len("Question: \nAnswer:")
SHAPE = Shape(16, documents=2, tokens=40, questions=2, row=34, new_tokens=8, answers=16)

FIRST = "Ann has a dog. Bea has a cat! Cyd has a parrot. Dan has none."
SECOND = "Short."


def example(*questions: Question, documents=(FIRST, SECOND), name="it", preamble="Be brief."):
    return Example(name, documents, questions, preamble)


def about(text: str, *answers: str) -> Question:
    return Question(text, answers)


DOG, CAT, NONE = about("Ann's?", "dog"), about("Bea's?", "cat"), about("Dan's?", "none")


def text_of(ids) -> str:
    return "".join(map(chr, ids))


def texts(fitted: Fitted) -> list[str]:
    return [text_of(d).removesuffix("\n\n") for d in fitted.encoded.documents]


@pytest.mark.parametrize(
    ("tokens", "sentences"),
    [
        (len(FIRST) + ENDING, 4),
        (len(FIRST) + ENDING - 1, 3),
        (len("Ann has a dog. Bea has a cat!") + ENDING, 2),
        (len("Ann has a dog. Bea has a cat!") + ENDING - 1, 1),
        (len("Ann has a dog.") + ENDING, 1),
    ],
)
def test_documents_are_cut_to_as_many_whole_sentences_as_fit(tokens, sentences):
    fitted = fit(MODEL, TEMPLATE, example(DOG), dataclasses.replace(SHAPE, tokens=tokens))
    ends = [m.start() for m in passages.CUT_AT.finditer(FIRST)] + [len(FIRST)]
    assert texts(fitted) == [FIRST[: ends[sentences - 1]], SECOND]
    assert all(len(d) <= tokens for d in fitted.encoded.documents)


def test_lines_end_sentences_too():
    lines = "no full stop here\nnor in this long one, which is cut away"
    fitted = fit(MODEL, TEMPLATE, example(about("Q?", "x"), documents=(lines,)), SHAPE)
    assert texts(fitted) == ["no full stop here"]


def test_a_question_whose_answer_was_cut_away_goes_with_it():
    shape = dataclasses.replace(SHAPE, tokens=35, questions=3)
    fitted = fit(MODEL, TEMPLATE, example(DOG, NONE, CAT), shape)
    assert fitted.questions == (DOG, CAT)
    asked = [text_of(q) for q in fitted.encoded.questions]
    assert asked == [f"Question: {q.text}\nAnswer:" for q in (DOG, CAT)]
    reason = fit(MODEL, TEMPLATE, example(NONE), shape)
    assert reason == "no question has at most 30 tokens and its answer in the documents"


def test_a_question_stays_where_its_answer_is_left_and_goes_where_it_was_cut_over_a_line():
    first = "Ann has a red dog. Bea has a cat. Ann has a red dog and a\nblack cow."
    cow, dog = about("Which cow?", "a black cow"), about("Which dog?", "red dog")
    shape = dataclasses.replace(SHAPE, questions=2)
    fitted = fit(MODEL, TEMPLATE, example(cow, dog, documents=(first,)), shape)
    assert texts(fitted) == ["Ann has a red dog. Bea has a cat."] and fitted.questions == (dog,)
    split = "Ann has a red dog and a black\ncow, which gives milk."
    fitted = fit(MODEL, TEMPLATE, example(about("?", "black cow"), dog, documents=(split,)), shape)
    assert texts(fitted) == ["Ann has a red dog and a black"] and fitted.questions == (dog,)


def test_questions_that_are_long_or_too_many_are_left_out():
    room = SHAPE.row - SHAPE.new_tokens // 2
    longest = about("L" * (room - FRAME), "dog")
    longer = about("L" * (room - FRAME + 1), "dog")
    fitted = fit(MODEL, TEMPLATE, example(longer, longest, DOG, CAT), SHAPE)
    assert fitted.questions == (longest, DOG)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"documents": (SECOND,) * 3}, "it has 3 documents, 2 fit"),
        ({"documents": ("One long sentence " * 3,)}, "a document's first sentence has over 40 tok"),
        ({"preamble": "Be very very brief."}, "its preamble has 21 tokens, 16 fit"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_words(changed, reason):
    assert fit(MODEL, TEMPLATE, example(DOG, **changed), SHAPE).startswith(reason)


def test_the_next_example_that_fits_is_drawn():
    long = "One long sentence " * 3
    source = [
        example(DOG, name="a"),
        example(DOG, name="b", documents=(long,)),
        example(about("?" * 99, "dog"), name="c"),
        example(CAT, name="d"),
    ]
    drawn = [draw(MODEL, TEMPLATE, source, i, SHAPE).id for i in range(4)]
    assert drawn == ["a", "d", "d", "d"]
    assert draw(MODEL, TEMPLATE, source[:3], 1, SHAPE).id == "a"  # from the first on
    # Where they are scored, each counts once.
    for count, ids in ((1, ["a"]), (2, ["a", "d"]), (9, ["a", "d"])):
        assert [e.id for e in fitting(MODEL, TEMPLATE, source, SHAPE, count)] == ids
    with pytest.raises(ValueError, match="None of 50"):
        fitting(MODEL, TEMPLATE, source[1:3], SHAPE, 2)
    both = [example(Question("Short?", ("Short",)), about("Ann has a", "dog"))]
    assert fitting(MODEL, TEMPLATE, both, SHAPE, 9) == both
    parts = fitting(MODEL, TEMPLATE, both, SHAPE, 9, best_first=True)
    firsts = {part.documents[0]: [q.text for q in part.questions] for part in parts}
    assert firsts == {SECOND: ["Short?"], FIRST: [both[0].questions[1].text]}
    with pytest.raises(ValueError, match=r"None of 50 .* The first, b: a document's first sentenc"):
        draw(MODEL, TEMPLATE, source[1:3], 0, SHAPE)
    with pytest.raises(ValueError, match=r"The first, c: no question has at most 30 tokens"):
        draw(MODEL, TEMPLATE, source[1:3], 1, SHAPE)


def test_sizes_of_a_shape():
    assert SHAPE.context == 128  # 16 + 2 * 40, a multiple of 64
    assert SHAPE.positions(5) == 16 + 2 * 45 + 34
    assert SHAPE.computed(5) == 16 + 2 * 45 + 2 * 34
    fitted = fit(MODEL, TEMPLATE, example(DOG, CAT), SHAPE)
    parts, answers = fitted.encoded, [[1, 2, 3], [4]]
    context = sum(map(len, [parts.preamble, *parts.documents])) + 2 * 5
    first, second = map(len, parts.questions)
    for weights, rows in (([1, 1], first + 2 + second), ([0, 1], second)):
        batch = pack([fitted], [answers], [weights], SHAPE)
        assert real_tokens([fitted], batch, 5) == context + rows, "what is not in the loss is none"


@pytest.mark.model
def test_the_mixture_pads_little_in_few_programs(demo_folder):
    config = train_config.get_config()
    model = types.SimpleNamespace(tokenizer=tokenizer.load(demo_folder(config.model)))
    template, sources = TEMPLATES[config.template], setup.sources(config)
    train_sets = {n: PartlyBestFirst(s, config.best_first) for n, s in sources.items()}
    total, real, computed, sizes = 0.0, 0.0, 0.0, set()
    for name, entry in setup.entries(config):
        shape = setup.shape_of(entry, 40)
        sizes.add(shape)
        for i in range(20):
            fitted = draw(model, template, train_sets[name], 7 * i, shape)
            answers = [[0] * 6 for _ in fitted.questions]  # about what the teacher gives
            batch = pack([fitted], [answers], [[1.0] * len(answers)], shape)
            real += entry.weight * real_tokens([fitted], batch, 0)
            computed += entry.weight * shape.computed(0)
        total += entry.weight
    assert total == pytest.approx(1.0)
    assert real > 0.75 * computed and len(sizes) <= 6  # everyday documents are of many lengths


@pytest.mark.model
def test_sets_that_are_validated_on_keep_their_questions(demo_folder):
    """Documents longer than their entry are cut, and questions go with what was cut."""
    config = train_config.get_config()
    model = types.SimpleNamespace(tokenizer=tokenizer.load(demo_folder(config.model)))
    template, sources = TEMPLATES[config.template], setup.validation_sources(config)
    for name, entry in setup.kinds(config):
        shape = setup.shape_of(entry, 40)
        sets = fitting(model, template, sources[name], shape, entry.sets)
        counts = [len(fit(model, template, each, shape).questions) for each in sets]
        assert len(sets) == entry.sets and sum(counts) >= 0.75 * len(sets) * shape.questions, name
        # As a run has them, in parts about one document.
        sets = fitting(model, template, sources[name], shape, entry.sets, config.opening)
        kept = sum(len(fit(model, template, each, shape).questions) for each in sets)
        room = sum(min(len(each.questions), shape.questions) for each in sets)
        assert len(sets) == entry.sets and kept >= 0.75 * room, name
        assert kept >= 20, f"{name} would be judged by few"
