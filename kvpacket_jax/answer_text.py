"""Decoded token ids as answers: their text, as a template has it."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from kvpacket_jax.data import Question, Template
from kvpacket_jax.packets.generate import stream
from kvpacket_jax.packets.prefill import Context, Prefilled
from models import LanguageModel


def whole(
    model: LanguageModel,
    context: Context,
    ready: Prefilled,
    questions: Sequence[Question],
    template: Template,
    new_tokens: int,
) -> list[str]:
    """The answers to questions whose rows are `ready`, decoded until the last one has ended."""
    ids: list[list[int]] = [[] for _ in questions]
    texts: list[str] = []
    for fresh in stream(model, context, ready, new_tokens):
        ids = [old + new for old, new in zip(ids, fresh, strict=True)]
        texts = [model.tokenizer.decode(i) for i in ids]
        if all(
            i[-1] in model.tokenizer.stop_ids or template.has_ended(q, text)
            for q, i, text in zip(questions, ids, texts, strict=True)
        ):
            break
    return [template.answer(q, text) for q, text in zip(questions, texts, strict=True)]


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
