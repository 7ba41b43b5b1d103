"""Fixed shapes of training examples, so that a run compiles few programs and pads little.

Each entry of a mixture has one Shape. What does not fit is cut to whole sentences, or left out and
another example is drawn.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from kvpacket_jax.data import (
    EncodedExample,
    Example,
    Question,
    Template,
    encode_example,
    order,
    passages,
)
from kvpacket_jax.packets.buckets import round_up
from models import LanguageModel

FITTING = "4"  # the version of what `fit` makes of an example, and of which answers are right
DRAWS = 50  # examples looked at for one that fits
PREAMBLE_MULTIPLE = 16


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of one example's arrays; every field but the first is the mixture entry's own choice.

    Letters: Tp, P, T, Q, R and A of loss.Batch; C is the teacher's context.
    """

    preamble: int  # Tp, a multiple of 16
    documents: int  # P, at most
    tokens: int  # T: of a document, without soft tokens
    questions: int  # Q, at most
    row: int  # R: of a question with its answer
    new_tokens: int  # of an answer, at most
    answers: int  # A: of all questions' answers together

    @property
    def context(self) -> int:
        """C: slots of preamble and documents end to end."""
        return round_up(self.preamble + self.documents * self.tokens, 64)

    def positions(self, soft_tokens: int) -> int:
        """Positions that an example spans, at most."""
        return self.preamble + self.documents * (self.tokens + soft_tokens) + self.row

    def computed(self, soft_tokens: int) -> int:
        """Tokens that the student runs through the layers, padding included."""
        packets = self.documents * (self.tokens + soft_tokens)
        return self.preamble + packets + self.questions * self.row


@dataclasses.dataclass(frozen=True)
class Fitted:
    """An example that fits a shape: its questions as text, its parts as token ids."""

    id: str
    questions: tuple[Question, ...]
    encoded: EncodedExample


def draw(
    model: LanguageModel, template: Template, source: Sequence[Example], index: int, shape: Shape
) -> Fitted:
    """Example `index` of a source, or the next one after it that fits.

    Raises ValueError, which names the first that did not and why, if none of DRAWS fits.
    """
    reason = ""
    for i in range(DRAWS):
        example = source[(index + i) % len(source)]
        fitted = fit(model, template, example, shape)
        if isinstance(fitted, Fitted):
            return fitted
        reason = reason or f"{example.id}: {fitted}"
    raise ValueError(
        f"None of {DRAWS} examples in a row fits its entry of the config. The first, {reason}. "
        "Make its documents, tokens, questions or row larger."
    )


def fitting(
    model: LanguageModel,
    template: Template,
    source: Sequence[Example],
    shape: Shape,
    count: int,
    best_first: bool = False,
) -> list[Example]:
    """The first `count` examples of a source that fit, each once; fewer where there are no more.

    Args:
      best_first: they are parts of the source's examples, as order.in_turn has them.

    Raises ValueError as `draw` where there is none.
    """
    examples = order.in_turn(source) if best_first else source
    fits = (e for e in examples if isinstance(fit(model, template, e, shape), Fitted))
    chosen = list(itertools.islice(fits, count))
    if not chosen:
        draw(model, template, source, 0, shape)  # says why
    return chosen


def fit(model: LanguageModel, template: Template, example: Example, shape: Shape) -> Fitted | str:
    """The example cut to a shape, or in words why it cannot be.

    Documents lose whole sentences at their ends. Questions go whose rows are too long, or whose
    gold answer was cut away.
    """
    if len(example.documents) > shape.documents:
        return f"it has {len(example.documents)} documents, {shape.documents} fit"
    cut = [_cut(model, template, d, shape.tokens) for d in example.documents]
    if not all(cut):
        return f"a document's first sentence has over {shape.tokens} tokens"
    both = list(zip(example.documents, cut, strict=True))
    questions = tuple(q for q in example.questions if not _lost(q, both))
    shortened = dataclasses.replace(example, documents=tuple(cut), questions=questions)
    encoded = encode_example(model.tokenizer, template, shortened)
    if len(encoded.preamble) > shape.preamble:
        return f"its preamble has {len(encoded.preamble)} tokens, {shape.preamble} fit"
    room = shape.row - shape.new_tokens // 2  # half of the longest answer, at least
    chosen = [i for i, q in enumerate(encoded.questions) if len(q) <= room][: shape.questions]
    if not chosen:
        return f"no question has at most {room} tokens and its answer in the documents"
    return Fitted(
        example.id,
        tuple(questions[i] for i in chosen),
        dataclasses.replace(encoded, questions=[encoded.questions[i] for i in chosen]),
    )


def _cut(model: LanguageModel, template: Template, document: str, limit: int) -> str:
    def fits(text: str) -> bool:
        return len(model.tokenizer.encode(template.document_text(text))) <= limit

    return passages.beginning(document, fits)


def _lost(question: Question, both: Sequence[tuple[str, str]]) -> bool:
    """Whether a gold answer stood in a document and does not in what is left of it."""
    return any(
        passages.stands_in(answer, whole) and not passages.stands_in(answer, left)
        for whole, left in both
        for answer in question.answers
    )
