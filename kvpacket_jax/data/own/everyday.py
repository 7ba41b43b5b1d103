"""Documents such as people keep, to train on: in folders of five, with questions about each.

everyday.jsonl.gz has lines as data set `corpus` takes them. Their people, firms and events are
invented. The documents of a folder are one household's, firm's or club's, in more than half of the
folders of one kind, so that a value is easily taken from the wrong one; a folder is what stands
before the last slash of an id. No folder is in two splits. A set is of one folder, and what is left
of several makes further ones; as long as the documents last no two sets share one.
"""

import dataclasses
import functools
import os
import pathlib
import random

from kvpacket_jax.data import generated, passages
from kvpacket_jax.data.examples import Example
from kvpacket_jax.data.own import corpus

VERSION = "1.0.0"  # part of every seed: raise it with any change of what is drawn
RECORDS = pathlib.Path(__file__).with_name("everyday.jsonl.gz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EverydayConfig(generated.GeneratorConfig):
    """Ranges are a number or (least, most); documents of other lengths are left out."""

    num_documents: int | tuple[int, int] = 5
    document_words: tuple[int, int] = (40, 320)
    notes: bool = False  # of each document a sentence or line alone, that has an answer

    def __post_init__(self):
        super().__post_init__()
        self.make_ranges(num_documents=(1, 24), document_words=(1, 400))


@functools.cache
def folders(split: str) -> tuple[tuple[dict, ...], ...]:
    """Returns the records of `split`, folder by folder."""
    by_folder = {}
    for record in corpus.records(str(RECORDS)):
        by_folder.setdefault(record["id"].rpartition("/")[0], []).append(record)
    return tuple(tuple(by_folder[name]) for name in generated.pool_of(list(by_folder), split))


@functools.lru_cache(maxsize=16)
def _fitting(split: str, document_words: tuple[int, int], notes: bool):
    """The folders of `split` with what `document_words` leaves of them."""
    least, most = document_words
    found = folders(split)
    if notes:
        found = [[n for r in folder if (n := _note(r, document_words))] for folder in found]
    return tuple(
        tuple(r for r in folder if least <= len(r["text"].split()) <= most) for folder in found
    )


def _note(record: dict, document_words: tuple[int, int]) -> dict | None:
    """The first sentence of `document_words` that answers a question, and what is asked about it.

    An answer that stands elsewhere in the document too may be to something else.
    """
    least, most = document_words
    once = [q for q in record["questions"] if passages.count(q["answers"][0], record["text"]) == 1]
    for line in record["text"].splitlines():
        for sentence in passages.SENTENCE_END.split(line):
            asked = [q for q in once if passages.stands_in(q["answers"][0], sentence)]
            if asked and least <= len(sentence.split()) <= most:
                return record | {"text": sentence.strip(), "questions": asked}
    return None


def generate(split: str, index: int, config: EverydayConfig) -> Example:
    """Returns example `index` of `split`. Raises ValueError for an unknown split."""
    fitting = _fitting(split, config.document_words, config.notes)
    turn, place = divmod(index, len(_deal(random.Random(0), fitting, config)))
    deck = generated.example_rng("everyday", VERSION, config, split, -1 - turn)
    rng = generated.example_rng("everyday", VERSION, config, split, index)
    chosen = _deal(deck, fitting, config)[place][: rng.randint(*config.num_documents)]
    questions = corpus.questions(rng, chosen, config.num_questions)
    documents = tuple(record["text"] for record in chosen)
    return Example(f"everyday-{split}-{index}", documents, questions, config.preamble)


def _deal(rng: random.Random, fitting, config: EverydayConfig) -> list[list[dict]]:
    """All documents in sets: of one folder, and of what is left of several."""
    most = config.num_documents[1]
    sets, left = [], []
    for folder in rng.sample(fitting, len(fitting)):
        shuffled = rng.sample(folder, len(folder))
        whole = len(folder) - len(folder) % most
        sets += _cut(shuffled[:whole], most)
        left += shuffled[whole:]
    sets += _cut(left[: len(left) - len(left) % most], most)
    rng.shuffle(sets)
    return sets


def _cut(records: list[dict], most: int) -> list[list[dict]]:
    return [records[i : i + most] for i in range(0, len(records), most)]


def source(split: str, data_dir: str | os.PathLike, **options) -> generated.DrawnSource:
    """Returns the examples of `split`; `options` are EverydayConfig's. Nothing is written.

    Raises ValueError where fewer documents fit than an example has.
    """
    generated.check_options("everyday", EverydayConfig, options)
    config = EverydayConfig(**options)
    generated.check_whole(split, "everyday")
    number = sum(map(len, _fitting(split, config.document_words, config.notes)))
    if number < config.num_documents[1]:
        raise ValueError(
            f"everyday: {split} has {number} documents of {config.document_words} words, fewer "
            f"than the {config.num_documents[1]} of an example: give a wider document_words."
        )
    fingerprint = generated.fingerprint("everyday", VERSION, config, split)
    return generated.DrawnSource(generate, split, config, fingerprint)
