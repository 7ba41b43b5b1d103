"""A user's own questions: a file of JSON lines with documents, question and answers."""

import dataclasses
import functools
import os
import pathlib

from kvpacket_jax.data import generated, json_lines
from kvpacket_jax.data.examples import INSTRUCTION, Example, Question

MOST = 32  # questions of an example
LINE = (
    'A line is {"documents": ["…"], "question": "…"}. About documents alone, lines {"id": "…", '
    '"text": "…"}, launch.write_questions asks, for configs/evaluate.py:corpus.'
)


def source(
    split: str, data_dir: str | os.PathLike, path: str, preamble: str = INSTRUCTION
) -> list[Example]:
    """Returns the questions of `path`; up to MOST about the same documents are one example.

    A line is `{"documents": ["…"], "question": "…", "answers": ["…"]}`, with an `id` if you like: a
    question has it in its `info`, an example that of its first one. Without "answers" the full
    context's own answer counts as right. "{split}" in the path stands for the split's name; without
    it every split is the same file.

    Raises FileNotFoundError, and ValueError where no path is given, or that names every bad line.
    """
    if not path:
        raise ValueError("Give the file of questions: --config.dataset.options.path=FILE.")
    generated.check_whole(split, "jsonl")
    file = pathlib.Path(str(path).replace("{split}", split)).expanduser()
    examples, bad, lines = [], [], {}
    make = functools.partial(_example, preamble)
    for number, parsed in json_lines.read(file, ("documents", "question"), make):
        if isinstance(parsed, ValueError):
            bad.append(f"line {number}: {parsed}")
        elif parsed.id in lines:
            bad.append(f"line {number}: the id {parsed.id} is line {lines[parsed.id]}'s already")
        else:
            lines[parsed.id] = number
            examples.append(parsed)
    json_lines.refuse(file, bad, LINE)
    if not examples:
        raise ValueError(f"{file} is empty: there is nothing to ask.")
    return _together(examples)


def _together(lines: list[Example]) -> list[Example]:
    """Documents are read once for all that is asked about them."""
    by_documents: dict[tuple[str, ...], list[list[Example]]] = {}
    for line in lines:
        groups = by_documents.setdefault(line.documents, [[]])
        if len(groups[-1]) == MOST:
            groups.append([])
        groups[-1].append(line)
    return [
        dataclasses.replace(group[0], questions=tuple(q for line in group for q in line.questions))
        for groups in by_documents.values()
        for group in groups
    ]


def _example(preamble: str, number: int, record: dict) -> Example:
    lists = [key for key in ("documents", "answers") if key in record]
    for key in lists:
        if not isinstance(record[key], list) or not record[key]:
            raise ValueError(f"{key} must be a list of texts, not empty")
        for text in record[key]:
            json_lines.check_text(key, text)
    json_lines.check_text("question", record["question"])
    name = record.get("id", f"line-{number}")
    question = Question(record["question"], tuple(record.get("answers", ())), info={"id": name})
    return Example(name, tuple(record["documents"]), (question,), preamble)
