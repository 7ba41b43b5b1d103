"""MuSiQue-Ans (Trivedi et al. 2022, arXiv 2108.00573, CC BY 4.0): questions of two to four hops.

Each has twenty paragraphs, two to four of them gold. Its official files lie where no program
fetches them, so the user gives their folder.
"""

import os
import pathlib
from collections.abc import Iterator

from kvpacket_jax.data import generated, json_lines
from kvpacket_jax.data.examples import Example
from kvpacket_jax.data.published import multi_hop
from kvpacket_jax.data.published.multi_hop import Dataset, MultiHopConfig, Official, Paragraph

REQUIRED = ("id", "paragraphs", "question", "answer")


def source(split: str, data_dir: str | os.PathLike, **options) -> multi_hop.Source:
    """Returns the examples of `split`, one question each; `options` are MultiHopConfig's.

    Raises as multi_hop.open_published.
    """
    generated.check_options("musique", MultiHopConfig, options)
    dataset = Dataset(
        "musique",
        "1.0.0",
        "https://github.com/StonyBrookNLP/musique",
        "CC BY 4.0",
        # The archive has MuSiQue-Full's files beside MuSiQue-Ans's.
        {
            "train": Official(("*_ans_*train*.jsonl", "*train*.jsonl")),
            "dev": Official(("*_ans_*dev*.jsonl", "*dev*.jsonl")),
        },
        read,
    )
    return multi_hop.open_published(dataset, split, data_dir, MultiHopConfig(**options))


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
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"it is no record of MuSiQue ({type(error).__name__}: {error}), which has id, "
            "paragraphs, question, answer and answer_aliases"
        ) from error
    info = {"kind": f"{hops}_hop", "hops": hops}
    return multi_hop.example(record["id"], paragraphs, record["question"], answers, info)
