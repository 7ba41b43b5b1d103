"""Which document is read first."""

import dataclasses

from kvpacket_jax import similarity
from kvpacket_jax.data.examples import Example


def best_first(example: Example) -> list[Example]:
    """The example in parts, of the questions that are most like the same document: it comes first.

    The other documents keep their order, and parts the order of their first questions. Requests are
    read so (serve/session.py): a document that comes first loses nothing as a packet.
    """
    parts: dict[int, list[int]] = {}
    for i, question in enumerate(example.questions):
        parts.setdefault(similarity.closest_to(example.documents, question.text), []).append(i)
    return [_part(example, first, questions) for first, questions in parts.items()]


def _part(example: Example, first: int, questions: list[int]) -> Example:
    order = [first, *(i for i in range(len(example.documents)) if i != first)]

    def moved(i: int):
        question = example.questions[i]
        if "documents" not in question.info:
            return question
        places = sorted(order.index(d) for d in question.info["documents"])
        return dataclasses.replace(question, info=question.info | {"documents": places})

    return dataclasses.replace(
        example,
        id=f"{example.id}, {first} first",
        documents=tuple(example.documents[i] for i in order),
        questions=tuple(map(moved, questions)),
    )
