"""RULER's tasks: what is asked follows from the documents, read by a program of a few lines."""

import collections
import re

import pytest

from kvpacket_jax.data.synthetic import ruler

SIZES = dict(num_tokens=500, num_chunks=(2, 5), num_common=3, common=7, rare=2)


def examples(kind, number=20, **options):
    config = ruler.RulerConfig(kinds=(kind,), **SIZES | options)
    return [ruler.generate("train", i, config) for i in range(number)]


def expected(question) -> list[str]:
    return question.answers[0].split(", ")


def test_variables_have_the_value_that_reading_in_order_gives_them():
    for example in examples("variable_tracking", num_chains=3, num_hops=2):
        values, text = {}, " ".join(example.documents)
        for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", text):
            values[name] = values.get(value, value)  # a chain never refers ahead
        assert len(values) == 9 and len(example.questions) == 3
        for question in example.questions:
            wanted = re.search(r"\d{7}", question.text).group()
            assert expected(question) == [n for n, value in values.items() if value == wanted]


def test_several_needles_are_asked_in_the_order_of_the_question():
    for example in examples("multi_query", num_needles=6, num_queries=3):
        found = re.findall(r"magic number for (\S+) is (\d+)\.", " ".join(example.documents))
        numbers = dict(found)
        assert len(numbers) == 6 and len(example.questions) == 2
        for question in example.questions:
            asked = re.findall(r"[a-z]+-[a-z]+", question.text)
            assert expected(question) == [numbers[key] for key in asked] and len(asked) == 3
            holding = [i for i, d in enumerate(example.documents) if any(k in d for k in asked)]
            assert question.info["documents"] == holding


@pytest.mark.parametrize("kind", ruler.KINDS)
def test_texts_are_as_long_as_asked(kind):
    for tokens in (2000, 3000, 8000):
        of_default = ruler.RulerConfig(kinds=(kind,), num_tokens=tokens)
        for i in range(3):
            text = " ".join(ruler.generate("test", i, of_default).documents)
            numbered = kind == "common_words"  # a word with its number has about five tokens
            estimate = len(text.split()) / 2 * 5 if numbered else len(text.split()) * 1.1
            assert 0.75 * tokens < estimate < 1.25 * tokens


def test_common_words_are_the_most_common_ones():
    for example in examples("common_words"):
        words = re.findall(r"\d+\. (\w+)", " ".join(example.documents))
        counts = collections.Counter(words).most_common()
        assert sorted(word for word, _ in counts[:3]) == expected(example.questions[0])
        assert {n for _, n in counts[:3]} == {7} and {n for _, n in counts[3:]} == {2}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"kinds": ("single",)}, "multi_query, variable_tracking, common_words"),
        ({"num_queries": 9}, "from 1 to 8"),
        ({"common": 3}, "from 4 to 1000"),
        ({"num_tokens": 1000}, "common_words needs 1,515 or more .* smaller common"),
    ],
)
def test_options_out_of_range_are_refused(options, names):
    with pytest.raises(ValueError, match=names):
        ruler.RulerConfig(**options)
