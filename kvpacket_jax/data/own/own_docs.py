"""Everyday documents with questions about them: never for training.

configs/train.py does not validate on them, so that a card can say what an adapter is like on
documents that it was not chosen by. Both splits are the same.

own_docs.jsonl.gz has twelve sets of five invented documents of 94 to 253 words (timetables, price
lists, manuals, contracts, minutes, e-mails, code documentation, tables in plain text) and ten
questions about each set. In half of the sets documents are easily confused; a set's last question
needs two documents.

own_notes.jsonl.gz has twelve sets of five notes of one or two sentences (a timetable's line, a
setting, a key's place) (4 to 15 words), and a question about each note.
"""

import gzip
import json
import os
import pathlib

from kvpacket_jax.data.examples import INSTRUCTION, Example, Question

SPLITS = ("validation", "test")  # the same examples: nothing else is made from them
FOLDER = pathlib.Path(__file__).parent


def source(
    split: str, data_dir: str | os.PathLike, preamble: str = INSTRUCTION, notes: bool = False
) -> list[Example]:
    """Returns the twelve examples, of documents or of notes.

    Raises ValueError for the training split.
    """
    if split not in SPLITS:
        raise ValueError(f"own_docs has no split {split!r}, only {' and '.join(SPLITS)}.")
    records = FOLDER / ("own_notes.jsonl.gz" if notes else "own_docs.jsonl.gz")
    with gzip.open(records, "rt", encoding="utf-8") as file:
        return [_example(json.loads(line), preamble) for line in file]


def _example(record: dict, preamble: str) -> Example:
    questions = tuple(
        Question(q["text"], tuple(q["answers"]), info=q["info"] | {"kind": _kind(q["info"])})
        for q in record["questions"]
    )
    return Example(record["id"], tuple(record["documents"]), questions, preamble)


def _kind(info: dict) -> str:
    return f"{info.get('hops', 1)}_hop"
