"""Questions of a model's own about a file of documents: launch.write_questions, launch.train."""

import json
import os
import pathlib

import jax

import models
from kvpacket_jax import self_questions
from kvpacket_jax.runtime import progress
from kvpacket_jax.serve import corpus
from models.disk.files import append_line


def write(
    source: pathlib.Path,
    output: pathlib.Path,
    model_name: str,
    dtype: str = "auto",
    cache_dir: str | os.PathLike | None = None,
    size: int = 4,
    lengths: tuple[int, ...] = (192, 320, 512),
    least: int = 1,
    may_add: bool = True,
) -> None:
    """Writes questions about each document of `source` that `output` does not have yet.

    Args:
      size, lengths: as self_questions.Writer takes them.
      least: how many documents there must be.
      may_add: False where a run was begun with the questions that `output` has.

    Raises FileNotFoundError, ValueError: bad lines of either file, too few documents, questions
      about another text than a document has now, or new documents that may not be added; before a
      model is loaded.
    """
    documents = [
        (d.id, d.text) for d in corpus.read_file(source, corpus.refusing("Nothing was written."))
    ]
    if len(documents) < least:
        raise ValueError(
            f"{source} has too few documents ({len(documents)}): give {least} or more."
        )
    done = self_questions.finished(output)
    left = [d for d in documents if d[0] not in done]
    if left and not may_add:
        raise ValueError(
            f"The run beside {output} was begun without {left[0][0]!r}: of the documents of "
            f"{source}, {len(left)} are new. Take them out to go on, or give another --workdir."
        )
    _check_texts(source, output, documents, done, may_add)
    if not left:
        progress.SHOWN.say(f"{output} has the questions about all {len(documents):,} documents.")
        return
    with progress.step(f"Loading {model_name}"):
        # Documents are a batch under vmap, where blocks of keys skip nothing.
        choices = {"scan_layers": jax.default_backend() != "cpu", "key_block": 0}
        model = models.load_text_model(model_name, dtype, cache_dir, **choices)
    writer = self_questions.Writer(model, size, lengths)
    start = len(documents) - len(left)
    questions = tried = 0
    with progress.Bar("Questions", len(documents), start) as bar:
        for i, written in enumerate(writer.write(left), start + 1):
            append_line(output, json.dumps(written.record()))
            questions += len(written.questions)
            tried += written.tried
            bar.update(i, f"{i:,}/{len(documents):,} documents, {questions:,} questions")
    share = questions / max(tried, 1)
    progress.SHOWN.say(
        f"{output}: {questions:,} questions about {len(left):,} documents, {share:.0%} of those "
        "that it tried"
    )


def _check_texts(
    source: pathlib.Path,
    output: pathlib.Path,
    documents: list[tuple[str, str]],
    done: dict,
    may_add: bool,
) -> None:
    """Refuses questions about texts that have changed; says which documents are not given."""
    changed = [name for name, text in documents if done.get(name, text) != text]
    mend = "Remove their lines there, and they are asked again; or begin a new file."
    if not may_add:
        mend = "Put it back, or give another --workdir."
    if changed:
        raise ValueError(
            f"{output} has questions about {len(changed)} documents, {changed[0]!r} the first, "
            f"whose text in {source} is another now. {mend}"
        )
    if others := len(done.keys() - dict(documents).keys()):
        progress.SHOWN.say(f"{output} has {others:,} documents that are not in {source}, too.")
