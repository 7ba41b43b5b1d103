"""Documents of a file with questions about each, drawn in sets: what launch.write_questions wrote.

A line is `{"id": "…", "text": "…", "questions": [{"text": "…", "answers": ["…"]}]}`. A question
whose answer stands in two documents of its set is not asked; where there are few, sentences that
are cut in their middle are to be continued. Which split a document is in follows from all documents
of the file: train, validate and test on the same file.

Sets to validate and test on are dealt out: as long as the documents last no two share one, so that
their questions are independent.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import random

from kvpacket_jax import similarity
from kvpacket_jax.data import generated, json_lines, passages
from kvpacket_jax.data.examples import Example, Question
from kvpacket_jax.similarity import Index

VERSION = "1.2.0"  # part of every seed: raise it with any change of what is drawn
DRAWS = 100  # of sets of documents, until one can be asked about
CLOSEST = 2  # of so many times a set's documents those are drawn that stand beside the first


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig(generated.GeneratorConfig):
    """Ranges are a number or (least, most); documents of other lengths are left out.

    related: the documents of a set are similar to one of them, as those of a request are. Such sets
      are not dealt out.
    """

    path: str  # .jsonl or .jsonl.gz
    num_documents: int | tuple[int, int] = 5
    document_words: tuple[int, int] = (20, 400)
    related: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.make_ranges(num_documents=(1, 24), document_words=(1, 1_000_000))


@functools.lru_cache(maxsize=4)
def records(path: str) -> tuple[dict, ...]:
    """The records of a file.

    Raises FileNotFoundError, and ValueError where no path is given, or that names the bad lines.
    """
    if not path:
        raise ValueError(
            "Give the file that launch.write_questions wrote: --config.dataset.options.path=FILE."
        )
    file = pathlib.Path(path).expanduser()
    lines = list(json_lines.read(file, ("id", "text", "questions"), _check))
    bad = [f"line {number}: {r}" for number, r in lines if isinstance(r, ValueError)]
    json_lines.refuse(file, bad)
    by_id = {record["id"]: record for _, record in lines}
    if len(by_id) < len(lines):
        raise ValueError(f"{file} has {len(lines) - len(by_id)} lines with the id of another.")
    return tuple(by_id.values())


def _check(number: int, record: dict) -> dict:
    json_lines.check_text("text", record["text"])
    if not isinstance(record["questions"], list):
        raise ValueError("questions must be a list")
    for question in record["questions"]:
        match question:
            case {"text": str(), "answers": [str(), *more]} if all(
                isinstance(a, str) for a in more
            ):
                pass
            case _:
                raise ValueError('a question must be {"text": "…", "answers": ["…"]}')
    return record


def pool(split: str, config: CorpusConfig) -> tuple[dict, ...]:
    """The records of `split` whose documents are of `config.document_words`."""
    return _pool(split, config.path, config.document_words)


def _draw(rng: random.Random, split: str, config: CorpusConfig) -> list[dict]:
    """The documents of one set, in any order."""
    fitting, number = pool(split, config), rng.randint(*config.num_documents)
    if not config.related:
        return rng.sample(fitting, number)
    first = rng.randrange(len(fitting))
    index = _index(split, config.path, config.document_words)
    near = index.closest(first, min(CLOSEST * number, len(fitting) - 1))
    drawn = [first, *rng.sample(near, number - 1)]
    rng.shuffle(drawn)
    return [fitting[i] for i in drawn]


def _deal(
    rng: random.Random, drawn: CorpusConfig, split: str, index: int, config: CorpusConfig
) -> list[dict]:
    """The documents of set `index` where all are dealt out, shuffled anew at each turn."""
    fitting, most = pool(split, config), config.num_documents[1]
    turn, place = divmod(index, len(fitting) // most)
    deck = generated.example_rng("corpus", VERSION, drawn, split, -1 - turn)
    shuffled = deck.sample(fitting, len(fitting))
    return shuffled[place * most :][: rng.randint(*config.num_documents)]


@functools.lru_cache(maxsize=16)
def _index(split: str, path: str, document_words: tuple[int, int]) -> Index:
    fitting = _pool(split, path, document_words)
    return similarity.of_texts([record["text"] for record in fitting])


@functools.lru_cache(maxsize=16)
def _pool(split: str, path: str, document_words: tuple[int, int]) -> tuple[dict, ...]:
    by_id = {record["id"]: record for record in records(path)}
    chosen = (by_id[name] for name in generated.pool_of(list(by_id), split))
    least, most = document_words
    return tuple(r for r in chosen if least <= len(r["text"].split()) <= most)


def generate(split: str, index: int, config: CorpusConfig) -> Example:
    """Returns example `index` of `split`.

    Raises ValueError for an unknown split, or where no set of documents can be asked about.
    """
    # Where the file lies does not change what is drawn.
    drawn = dataclasses.replace(config, path="")
    rng = generated.example_rng("corpus", VERSION, drawn, split, index)
    deals = split != "train" and not config.related
    for draw in range(DRAWS):
        if deals and draw == 0:
            chosen = _deal(rng, drawn, split, index, config)
        else:
            chosen = _draw(rng, split, config)
        if asked := questions(rng, chosen, config.num_questions):
            documents = tuple(record["text"] for record in chosen)
            return Example(f"corpus-{split}-{index}", documents, asked, config.preamble)
    raise ValueError(
        f"{config.path} has too few questions: none about {DRAWS} sets of {len(chosen)} documents."
    )


def questions(rng: random.Random, chosen: list[dict], number: int) -> tuple[Question, ...]:
    """Up to `number` of the questions about the chosen records, and sentences to be continued."""
    written = [
        Question(q["text"], tuple(q["answers"]), "question", {"kind": "written", "documents": [i]})
        for i, record in enumerate(chosen)
        for q in record["questions"]
        if not _elsewhere(q["answers"], chosen, i)
    ]
    rng.shuffle(written)
    further = [
        question
        for i, record in enumerate(chosen)
        for paragraph in _body(record["text"]).split("\n\n")
        for question in passages.cuts(rng, i, paragraph)
    ]
    rng.shuffle(further)
    return tuple([*written, *further][:number])


def _body(text: str) -> str:
    """A text without its first line, which is a title, if it has more than one."""
    return text.partition("\n")[2] or text


def _elsewhere(answers: list[str], chosen: list[dict], document: int) -> bool:
    others = (record["text"] for i, record in enumerate(chosen) if i != document)
    return any(passages.stands_in(answer, text) for text in others for answer in answers)


class Source(generated.DrawnSource):
    """The examples of a split, generated when they are read."""

    def __init__(self, split: str, config: CorpusConfig):
        generated.check_whole(split, "corpus")
        fitting, needed = len(pool(split, config)), config.num_documents[1]
        if fitting < needed:
            raise ValueError(
                f"{config.path}: {split} has {fitting} documents of {config.document_words} words, "
                f"fewer than the {needed} of an example: give a wider document_words, or more "
                "documents."
            )
        content = hashlib.sha256(pathlib.Path(config.path).expanduser().read_bytes()).hexdigest()
        drawn = dataclasses.replace(config, path=content)
        fingerprint = generated.fingerprint("corpus", VERSION, drawn, split)
        super().__init__(generate, split, config, fingerprint)


def source(split: str, data_dir: str | os.PathLike, **options) -> Source:
    """Returns the examples of `split`; `options` are CorpusConfig's. Nothing is written."""
    generated.check_options("corpus", CorpusConfig, options)
    return Source(split, CorpusConfig(**{"path": "", **options}))
