"""Small corpora, and what a store built from them holds."""

import json
import pathlib
import random

WORDS = "the ferry to lune leaves at noon from pier three and the bus does not wait".split()


def text(i: int) -> str:
    return " ".join(random.Random(i).choices(WORDS, k=2 + 3 * (i % 8)))


def write_corpus(path: pathlib.Path, number: int = 60) -> pathlib.Path:
    """Documents of many lengths; every tenth says what another says."""
    lines = [{"id": f"d{i}", "text": text(i if i % 10 else i // 10)} for i in range(number)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file's bytes by its path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}
