"""Which document is read first."""

from kvpacket_jax import similarity
from kvpacket_jax.data.examples import Example, with_documents


def best_first(example: Example) -> list[Example]:
    """The example in parts, of the questions that are most like the same document: it comes first.

    The other documents keep their order, and parts the order of their first questions. Requests are
    read so (serve/found.py): a document that comes first loses nothing as a packet.
    """
    parts: dict[int, list[int]] = {}
    for i, question in enumerate(example.questions):
        parts.setdefault(similarity.closest_to(example.documents, question.text), []).append(i)
    others = range(len(example.documents))
    return [
        with_documents(
            example,
            [first, *(i for i in others if i != first)],
            [example.questions[i] for i in asked],
            f"{example.id}, {first} first",
        )
        for first, asked in parts.items()
    ]
