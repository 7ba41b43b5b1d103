"""Documents such as people have, with questions about them: for validation, never for training.

own_docs.jsonl.gz has twelve sets of five invented documents of 94 to 253 words (timetables, price
lists, manuals, contracts, minutes, e-mails, code documentation, tables in plain text) and ten
questions about each set. In half of the sets documents are easily confused; a set's last question
needs two documents.
"""

import gzip
import json
import os
import pathlib

from kvpacket_jax.data.examples import INSTRUCTION, Example, Question

SPLITS = ("validation", "test")  # the same examples: nothing else is made from them
RECORDS = pathlib.Path(__file__).with_name("own_docs.jsonl.gz")


def source(split: str, data_dir: str | os.PathLike, preamble: str = INSTRUCTION) -> list[Example]:
    """Returns the twelve examples. Raises ValueError for the training split."""
    if split not in SPLITS:
        raise ValueError(f"own_docs has no split {split!r}, only {' and '.join(SPLITS)}.")
    with gzip.open(RECORDS, "rt", encoding="utf-8") as file:
        return [_example(json.loads(line), preamble) for line in file]


def _example(record: dict, preamble: str) -> Example:
    questions = tuple(
        Question(q["text"], tuple(q["answers"]), info=q["info"]) for q in record["questions"]
    )
    return Example(record["id"], tuple(record["documents"]), questions, preamble)
