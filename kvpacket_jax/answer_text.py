"""Decoded token ids as answers: their text, as a template has it, and how sure the model was."""

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from kvpacket_jax.data import Question, Template
from kvpacket_jax.packets.generate import stream
from kvpacket_jax.packets.prefill import Context, Prefilled
from models import LanguageModel


class Said(NamedTuple):
    """A greedy answer."""

    text: str
    confidence: float  # `confidence`


def whole(
    model: LanguageModel,
    context: Context,
    ready: Prefilled,
    questions: Sequence[Question],
    template: Template,
    new_tokens: int,
) -> list[Said]:
    """The answers to questions whose rows are `ready`, decoded until the last one has ended."""
    ids: list[list[int]] = [[] for _ in questions]
    probabilities: list[list[float]] = [[] for _ in questions]
    texts: list[str] = []
    for fresh in stream(model, context, ready, new_tokens):
        ids = [old + new for old, new in zip(ids, fresh.tokens, strict=True)]
        probabilities = [
            old + new for old, new in zip(probabilities, fresh.probabilities, strict=True)
        ]
        texts = [model.tokenizer.decode(i) for i in ids]
        if all(
            i[-1] in model.tokenizer.stop_ids or template.has_ended(q, text)
            for q, i, text in zip(questions, ids, texts, strict=True)
        ):
            break
    return [
        Said(template.answer(q, text), confidence(model.tokenizer.decode, template, q, i, p))
        for q, text, i, p in zip(questions, texts, ids, probabilities, strict=True)
    ]


def confidence(
    decode: Callable[[list[int]], str],
    template: Template,
    question: Question,
    tokens: Sequence[int],
    probabilities: Sequence[float],
) -> float:
    """The probability of an answer's least likely token, from its first word to what ends it.

    Neither blanks and reasoning before an answer count, nor what was decoded beyond its end. Where
    there is no answer all tokens count.

    Args:
      tokens: as decoded greedily, a stop token included; probabilities: of each.
    """
    text = lambda k: decode(list(tokens[:k]))  # noqa: E731
    # What has ended stays so, and answers come last: of long reasoning little is decoded again.
    lengths = range(1, len(tokens) + 1)
    ended = bisect.bisect_left(lengths, True, key=lambda k: template.has_ended(question, text(k)))
    end = min(ended + 1, len(tokens))
    unsaid = (k for k in reversed(lengths[:end]) if not template.answer(question, text(k)))
    begin = next(unsaid, 0)
    return min(probabilities[begin if begin < end else 0 : end])


def pieces(
    blocks: Iterable[list[int]],
    decode: Callable[[list[int]], str],
    template: Template,
    question: Question,
) -> Iterator[str]:
    """New token ids, block by block, as pieces of text that join to the template's answer.

    Blocks beyond the first stop are not computed.
    """
    tokens: list[int] = []
    text = shown = ""
    for fresh in blocks:
        tokens += fresh
        text = decode(tokens)
        # An incomplete character is decoded as U+FFFD until the rest of it comes.
        so_far = template.answer(question, text).rstrip("\ufffd").rstrip()
        if template.streams and len(so_far) > len(shown):
            yield so_far[len(shown) :]
            shown = so_far
        if template.has_ended(question, text):
            break
    if rest := template.answer(question, text)[len(shown) :]:
        yield rest
