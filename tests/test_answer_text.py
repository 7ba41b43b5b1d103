"""How sure an answer is: of which tokens the least likely one counts."""

import pytest

from kvpacket_jax.answer_text import confidence
from kvpacket_jax.data import TEMPLATES, Question

QUESTION = Question("When?", ("noon",))
REASONED = ["It ", "is ", "said. ", "Answer", ":", " no", "on", "\n", "More"]


@pytest.mark.parametrize(
    ("template", "tokens", "counted"),
    [
        ("chat", [" no", "on", "<end>"], (0, 3)),
        ("chat", ["\n", "noon", "\n", "Question"], (1, 3)),  # a blank at first ends nothing
        ("completion", ["noon", "\n\nQ", "uestion"], (0, 2)),
        ("chat_reasoning", REASONED, (5, 8)),
        ("chat_reasoning", REASONED[:3], (0, 3)),  # it never came to an answer
        ("chat_reasoning", REASONED[:7], (5, 7)),
    ],
)
def test_the_least_likely_token_of_the_answer_itself_counts(template, tokens, counted):
    def sure(probabilities):
        ids = range(len(tokens))
        decode = lambda some: "".join(tokens[i] for i in some).replace("<end>", "")  # noqa: E731
        return confidence(decode, TEMPLATES[template], QUESTION, ids, probabilities)

    first, end = counted
    inside = [0.9] * len(tokens)
    for i in range(len(tokens)):
        doubtful = [*inside[:i], 0.2, *inside[i + 1 :]]
        assert sure(doubtful) == (0.2 if first <= i < end else 0.9), i
