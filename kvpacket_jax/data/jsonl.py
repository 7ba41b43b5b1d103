"""A user's own questions: a file of JSON lines with documents, question and answers."""

import json
import os
import pathlib

from kvpacket_jax.data.examples import INSTRUCTION, Example, Question


def source(
    split: str, data_dir: str | os.PathLike, path: str, preamble: str = INSTRUCTION
) -> list[Example]:
    """Returns one example a line of `path`; a file has no splits, so any will do.

    A line is `{"documents": ["…"], "question": "…", "answers": ["…"]}`, with an `id` if you like.

    Raises FileNotFoundError, and ValueError where no path is given, or that names every bad line.
    """
    if not path:
        raise ValueError("Give the file of questions: --config.dataset.options.path=FILE.")
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file} (dataset.options.path).")
    examples, bad, lines = [], [], {}
    # Bytes, for text has more ends of line than JSON lines have, and one bad line is one.
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            example = _example(json.loads(line.decode("utf-8-sig")), number, preamble)
            if example.id in lines:
                raise ValueError(f"the id {example.id} is line {lines[example.id]}'s already")
            lines[example.id] = number
            examples.append(example)
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are
            bad.append(f"line {number}: {error}")
    if bad:
        shown = "\n".join(bad[:20]) + (f"\n… and {len(bad) - 20} more" if len(bad) > 20 else "")
        raise ValueError(f"{file} has lines that cannot be used:\n{shown}")
    if not examples:
        raise ValueError(f"{file} is empty: there is nothing to ask.")
    return examples


def _example(record, number: int, preamble: str) -> Example:
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    missing = [k for k in ("documents", "question", "answers") if k not in record]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing; found {', '.join(record) or 'nothing'}")
    for key in ("documents", "answers"):
        if not isinstance(record[key], list) or not record[key]:
            raise ValueError(f"{key} must be a list of texts, not empty")
    texts = [*record["documents"], *record["answers"], record["question"]]
    if not all(isinstance(t, str) and t.strip() for t in texts):
        raise ValueError("documents, answers and question must be texts that are not empty")
    question = Question(record["question"], tuple(record["answers"]))
    name = str(record.get("id", f"line-{number}"))
    return Example(name, tuple(record["documents"]), (question,), preamble)
