"""MuSiQue-Ans (Trivedi et al. 2022, arXiv 2108.00573, CC BY 4.0): questions of two to four hops.

Each has twenty paragraphs, two to four of them gold, and is made of single-hop questions: those
that need no other's answer can be asked too. Its official files lie where no program fetches them,
so the user gives their folder.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator

from kvpacket_jax.data import generated, json_lines
from kvpacket_jax.data.examples import Example, Question
from kvpacket_jax.data.published import multi_hop
from kvpacket_jax.data.published.multi_hop import Dataset, MultiHopConfig, Official, Paragraph

REQUIRED = ("id", "paragraphs", "question", "answer")
# In a single-hop question: another one's answer ("#1"), or a relation in place of a question
# ("Green >> performer").
NOT_ALONE = ("#", ">>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuSiQueConfig(MultiHopConfig):
    """Options of MuSiQue."""

    single_hop: bool = False  # asks them too, of kind "1_hop", over the same paragraphs

    @property
    def num_questions(self) -> int | None:
        return None if self.single_hop else 1


def source(split: str, data_dir: str | os.PathLike, **options) -> multi_hop.Source:
    """Returns the examples of `split`; `options` are MuSiQueConfig's.

    Each has one question, and with `single_hop` then those of its decomposition that stand alone
    and that no earlier example has.

    Raises as multi_hop.open_published.
    """
    generated.check_options("musique", MuSiQueConfig, options)
    dataset = Dataset(
        "musique",
        "1.1.0",
        "https://github.com/StonyBrookNLP/musique",
        "CC BY 4.0",
        # The archive has MuSiQue-Full's files beside MuSiQue-Ans's.
        {
            "train": Official(("*_ans_*train*.jsonl", "*train*.jsonl")),
            "dev": Official(("*_ans_*dev*.jsonl", "*dev*.jsonl")),
        },
        read,
    )
    return multi_hop.open_published(dataset, split, data_dir, MuSiQueConfig(**options))


def read(path: pathlib.Path) -> Iterator[Example | ValueError]:
    """The examples of an official file, or what is wrong with a record."""
    for _, found in json_lines.read(path, REQUIRED, _example):
        yield found


def _example(number: int, record: dict) -> Example:
    if record.get("answerable") is False:
        raise ValueError("it is not answerable: this is MuSiQue-Full's file, not MuSiQue-Ans's")
    try:
        paragraphs = [
            Paragraph(p["title"], p["paragraph_text"], p["is_supporting"])
            for p in record["paragraphs"]
        ]
        answers = (record["answer"], *record.get("answer_aliases", ()))
        hops = int(record["id"][0])  # "3hop1__…"
        single = [
            (step["question"], step["answer"], step["paragraph_support_idx"])
            for step in record.get("question_decomposition", ())
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"it is no record of MuSiQue ({type(error).__name__}: {error}), which has id, "
            "paragraphs, question, answer, answer_aliases and question_decomposition"
        ) from error
    info = {"kind": f"{hops}_hop", "hops": hops}
    example = multi_hop.example(record["id"], paragraphs, record["question"], answers, info)
    gold, more = example.questions[0].info["documents"], []
    for text, answer, place in single:
        json_lines.check_text("question", text)
        if place in gold and not any(mark in text for mark in NOT_ALONE):
            more.append(_single_hop(text, answer, place))
    return dataclasses.replace(example, questions=(*example.questions, *more))


def _single_hop(text: str, answer: str, place: int) -> Question:
    info = {"kind": "1_hop", "hops": 1, "documents": [place]}
    return multi_hop.as_question(text, (answer,), info)
