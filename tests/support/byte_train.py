"""A config of launch.train for the tests: texts of one length, so that each step is one program."""

import json
import pathlib

from ml_collections import ConfigDict

from configs import train

RECORDS = 16


def write(path: pathlib.Path) -> None:
    """Questions about two documents each; letters vary, lengths do not."""
    with path.open("w") as file:
        for i in range(RECORDS):
            letters = [chr(ord("a") + (i + k) % 26) for k in range(3)]
            documents = [f"The {c} of {letters[0]} is {c * 9}." for c in letters[1:]]
            question = f"What is {letters[1]} of {letters[0]}?"
            documents = documents[:: 1 if i % 2 else -1]  # half of them best first as they are
            record = {"documents": documents, "question": question, "answers": [letters[1] * 9]}
            file.write(json.dumps(record) + "\n")


SIZES = dict(documents=2, tokens=26, questions=1, row=40, new_tokens=4, answers=4, learning=2)


def get_config(path: str) -> ConfigDict:
    """`--config=tests/support/byte_train.py:FILE`: soft tokens and a writer, no primer."""
    config = train.get_config()
    config.header = config.trailer = 8
    config.primer, config.writer_rank, config.scales = "", 2, (1.0,)
    config.template = "completion"
    options = ConfigDict({"path": path})
    entry = {"name": "jsonl", "options": options, **SIZES}
    config.mixture = ConfigDict({"it": {**entry, "weight": 1.0}})
    config.validation = ConfigDict({"it": {**entry, "split": "validation", "sets": 2}})
    return config
