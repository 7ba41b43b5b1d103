"""Documents with their ids, from a file of JSON lines or from a dict."""

import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from kvpacket_jax.data import json_lines


class Document(NamedTuple):
    id: str
    text: str
    place: str  # where it stands, for messages: "docs.jsonl, line 3"


def refusing(consequence: str = "") -> Callable[[str], None]:
    """What is done with a document that cannot be used, unless it is to be left out: ValueError."""

    def refuse(message: str) -> None:
        raise ValueError(f"{message}\n{consequence}".strip())

    return refuse


refuse = refusing("Nothing was built.")


def read_file(path: pathlib.Path, on_bad: Callable[[str], None] = refuse) -> list[Document]:
    """The documents of a file with lines {"id": "…", "text": "…"}.

    Args:
      on_bad: called with what is wrong with a line; where it returns, the line is left out.

    Raises:
      FileNotFoundError, ValueError: no such file, or no document in it.
    """
    documents: dict[str, Document] = {}
    lines: dict[str, int] = {}

    def read(number: int, record: dict) -> Document:
        document = _check(record["id"], record["text"], f"{path}, line {number}")
        if document.id in lines:
            raise ValueError(f"id {document.id!r} is line {lines[document.id]}'s already")
        return document

    for number, document in json_lines.read(path, ("id", "text"), read):
        if isinstance(document, ValueError):
            on_bad(f"{path}, line {number}: {document}")
        else:
            documents[document.id], lines[document.id] = document, number
    if not documents:
        raise ValueError(f"{path} has no document.")
    return list(documents.values())


def from_mapping(texts: Mapping[str, str]) -> list[Document]:
    """The documents of a dict from ids to texts; ValueError for one that cannot be used."""
    if not isinstance(texts, Mapping):
        raise ValueError(f"Documents are a dict of texts by ids; found a {type(texts).__name__}.")
    documents: dict[str, Document] = {}
    for id, text in texts.items():
        place = f"document {id!r}"
        try:
            document = _check(id, text, place)
        except ValueError as error:
            refuse(f"{place}: {error}")
        if document.id in documents:  # 1 and "1"
            refuse(f"{place}: there are two documents of the id {document.id!r}.")
        documents[document.id] = document
    if not documents:
        raise ValueError("No document was given.")
    return list(documents.values())


def _check(id, text, place: str) -> Document:
    id = json_lines.check_id(id)
    json_lines.check_text("text", text)
    return Document(id, text, place)
