"""What every data set yields: documents, a preamble, and questions about them."""

import dataclasses
import json
from collections.abc import Sequence

INSTRUCTION = (
    "Answer the question from the documents with the shortest exact phrase. No explanation."
)

# "question" asks in full ("Where was X born?"); "completion" is a statement left open at its
# end ("X was born on"), which the answer completes.
FORMS = ("question", "completion")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, every answer that counts as right, its form, and facts for analysis.

    `info` is JSON-able and free: generated sets put "documents" there, the indices of the
    documents that hold the answer.
    """

    text: str
    answers: tuple[str, ...]
    form: str = "question"
    info: dict = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True)
class Example:
    """Questions about one set of documents; `preamble` is the instruction before them."""

    id: str
    documents: tuple[str, ...]
    questions: tuple[Question, ...]
    preamble: str = INSTRUCTION


def with_documents(
    example: Example, kept: Sequence[int], questions: Sequence[Question], id: str
) -> Example:
    """The example with some of its documents, in this order, and questions that need no others.

    Where `info` names documents it follows them.
    """

    def moved(question: Question) -> Question:
        if "documents" not in question.info:
            return question
        places = sorted(kept.index(i) for i in question.info["documents"])
        return dataclasses.replace(question, info=question.info | {"documents": places})

    documents = tuple(example.documents[i] for i in kept)
    return dataclasses.replace(
        example, id=id, documents=documents, questions=tuple(map(moved, questions))
    )


def to_record(example: Example) -> dict:
    """Returns the example as a flat dict with the questions as one JSON string.

    tensorflow-datasets writes one ragged level only without TensorFlow, and that level is the
    documents'.
    """
    return {
        "id": example.id,
        "preamble": example.preamble,
        "documents": list(example.documents),
        "questions": json.dumps([dataclasses.asdict(q) for q in example.questions]),
    }


def from_record(record: dict) -> Example:
    """Returns the example of a record that `to_record` returned (text may come back as bytes)."""
    questions = [
        Question(q["text"], tuple(q["answers"]), q["form"], q["info"])
        for q in json.loads(record["questions"])
    ]
    return Example(
        id=_text(record["id"]),
        documents=tuple(_text(d) for d in record["documents"]),
        questions=tuple(questions),
        preamble=_text(record["preamble"]),
    )


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
