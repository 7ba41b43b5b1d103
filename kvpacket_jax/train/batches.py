"""The microbatches of a step: examples, the teacher's answers to them, and arrays of one shape."""

import dataclasses
import functools
import random
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from kvpacket_jax import teacher
from kvpacket_jax.data import Example, Question, Template
from kvpacket_jax.evaluate import metrics
from kvpacket_jax.packets.generate import check_finite, stop_array
from kvpacket_jax.train import shapes
from kvpacket_jax.train.loss import Batch, pack, real_tokens
from kvpacket_jax.train.shapes import Fitted, Shape
from models import LanguageModel, sharding
from models.transformer import Transformer


class Work(NamedTuple):
    """Tokens that the student runs through the layers."""

    tokens: int
    computed: int  # padding and unused questions included


class Microbatch(NamedTuple):
    """Examples on the device, with what the teacher said."""

    entry: str
    examples: list[Fitted]
    questions: jax.Array  # int32 [E, Q, R], without answers
    question_lengths: jax.Array  # int32 [E, Q]
    batch: Batch
    hidden: jax.Array  # float32 [E, Q, N, D]
    answers: list[list[str]]  # the teacher's, of each example
    answer_ids: list[list[list[int]]]  # their tokens, a stop token included
    right: np.ndarray  # bool [E, Q]: as `_is_right` has it of the teacher's
    work: Work


class Texts(NamedTuple):
    """A microbatch that is read and tokenised; nothing of it is on the device yet."""

    entry: str
    examples: list[Fitted]
    keeps: list[float]


class Pending(NamedTuple):
    """A microbatch whose teacher is under way on the device."""

    entry: str
    examples: list[Fitted]
    keeps: list[float]
    questions: jax.Array
    question_lengths: jax.Array
    answers: teacher.Answers


@dataclasses.dataclass(frozen=True)
class Teaching:
    """Makes microbatches: `read` on any thread, `ask` starts the teacher, `collect` waits for it.

    Every host makes the whole microbatch, and holds its own share of it on its devices.

    Args:
      shapes: of each entry of the mixture.
      size: E, examples of a microbatch.
      wrong_weight: the weight in the loss of a question that the teacher answers wrongly: no gold
        answer is in its answer, nor begins with what it had room for. Right answers and questions
        without gold ones weigh 1.
      seed: decides which documents of an example gradients go through.
      keeps: shares of a document's slots that a distiller keeps; examples have them in turn.
      opening: the first document has a packet of its own, without a gradient:
        loss.student_context.
    """

    model: LanguageModel
    template: Template
    sources: dict[str, Sequence[Example]]
    shapes: dict[str, Shape]
    size: int
    soft_tokens: int
    wrong_weight: float
    seed: int
    keeps: tuple[float, ...] = (1.0,)
    opening: bool = False

    def read(self, entry: str, first: int) -> Texts:
        """Examples from `first` on of an entry."""
        shape, source = self.shapes[entry], self.sources[entry]
        draw = functools.partial(shapes.draw, self.model, self.template, source, shape=shape)
        numbers = range(first, first + self.size)
        keeps = [self.keeps[i % len(self.keeps)] for i in numbers]
        return Texts(entry, [draw(i % len(source)) for i in numbers], keeps)

    def teach(self, entry: str, first: int) -> Microbatch:
        """`read`, `ask` and `collect` in one."""
        return self.collect(self.ask(self.read(entry, first)))

    def ask(self, texts: Texts) -> Pending:
        """Starts the teacher's pass over a microbatch."""
        examples, shape = texts.examples, self.shapes[texts.entry]
        contexts = [
            [t for part in (x.encoded.preamble, *x.encoded.documents) for t in part]
            for x in examples
        ]
        context, lengths = _padded(contexts, shape.context)
        rows = [_padded(x.encoded.questions, shape.row, shape.questions) for x in examples]
        questions, question_lengths = (np.stack(part) for part in zip(*rows, strict=True))
        arrays = sharding.put_batch(
            self.model.config.mesh, (context, lengths, questions, question_lengths)
        )
        stops = stop_array(self.model, None)
        module = Transformer(dataclasses.replace(self.model.config, shared_layers=None))
        answers = _answer(module, self.model.params, *arrays, stops, new_tokens=shape.new_tokens)
        return Pending(*texts, *arrays[2:], answers)

    def collect(self, pending: Pending) -> Microbatch:
        """The microbatch of `ask` with its targets; waits for the teacher.

        Raises ValueError where the teacher's logits are not finite.
        """
        shape, examples = self.shapes[pending.entry], pending.examples
        tokens, lengths = sharding.fetch((pending.answers.tokens, pending.answers.lengths))
        check_finite(self.model, tokens)
        answers = token_lists(examples, tokens, lengths)
        texts = self.texts(examples, answers)
        right = np.zeros((self.size, shape.questions), bool)
        weights = []
        for e, (example, said) in enumerate(zip(examples, texts, strict=True)):
            right[e, : len(said)] = [
                _is_right(q, text, self._is_cut(q, ids, shape))
                for q, text, ids in zip(example.questions, said, answers[e], strict=True)
            ]
            weights.append(np.where(right[e, : len(said)], 1.0, self.wrong_weight).tolist())
        orders = [self._order(x, shape) for x in examples]
        batch = pack(examples, answers, weights, shape, orders, pending.keeps)
        work = Work(
            real_tokens(examples, batch, self.soft_tokens),
            self.size * shape.computed(self.soft_tokens),
        )
        batch = sharding.put_batch(self.model.config.mesh, batch)
        return Microbatch(
            entry=pending.entry,
            examples=examples,
            questions=pending.questions,
            question_lengths=pending.question_lengths,
            batch=batch,
            hidden=pending.answers.hidden,
            answers=texts,
            answer_ids=answers,
            right=right,
            work=work,
        )

    def texts(self, examples: list[Fitted], answers: list[list[list[int]]]) -> list[list[str]]:
        """Answers as the template has them, from their token ids."""
        decode = self.model.tokenizer.decode
        return [
            [self.template.answer(q, decode(a)) for q, a in zip(x.questions, ids, strict=True)]
            for x, ids in zip(examples, answers, strict=True)
        ]

    def _is_cut(self, question: Question, ids: list[int], shape: Shape) -> bool:
        """Whether an answer had no room to end."""
        tokenizer = self.model.tokenizer
        if len(ids) < shape.new_tokens or ids[-1] in tokenizer.stop_ids:
            return False
        return not self.template.has_ended(question, tokenizer.decode(ids))

    def _order(self, example: Fitted, shape: Shape) -> list[int]:
        """All P documents, in an order that follows from seed and example; absent ones last.

        After them comes the first, where it is an opening.
        """
        number = len(example.encoded.documents)
        present = list(range(self.opening, number))
        random.Random(f"{self.seed}:{example.id}").shuffle(present)
        return present + list(range(number, shape.documents)) + [0] * self.opening


def _is_right(question: Question, text: str, cut: bool) -> bool:
    """Whether a gold answer is in `text`, or none is known; one that was cut off begins one."""
    golds = question.answers
    return not golds or metrics.contains(text, golds) or (cut and metrics.begins(text, golds))


def token_lists(
    examples: list[Fitted], tokens: np.ndarray, lengths: np.ndarray
) -> list[list[list[int]]]:
    """Token ids of each question's answer, from int32 `[E, Q, N]` and `[E, Q]`."""
    return [
        [tokens[e, q, : lengths[e, q]].tolist() for q in range(len(example.questions))]
        for e, example in enumerate(examples)
    ]


_answer = functools.partial(jax.jit, static_argnames=("module", "new_tokens"))(teacher.answer_batch)


def _padded(
    sequences: Sequence[Sequence[int]], width: int, count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """int32 ids `[count, width]` and lengths `[count]`; absent rows have length 1."""
    count = len(sequences) if count is None else count
    ids, lengths = np.zeros((count, width), np.int32), np.ones(count, np.int32)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)], lengths[i] = sequence, len(sequence)
    return ids, lengths
