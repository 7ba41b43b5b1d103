"""Documents such as people keep, to train on: in folders of five, with questions about each.

everyday.jsonl.gz has lines as data set `corpus` takes them. All of it is invented. The documents of
a folder are one household's, firm's or club's, in half of the folders of one kind, so that a value
is easily taken from the wrong one; a folder is what stands before the last slash of an id. No
folder is in two splits. Sets are dealt out folder by folder: as long as the documents last no two
share one.
"""

import dataclasses
import functools
import os
import pathlib
import random

from kvpacket_jax.data import generated
from kvpacket_jax.data.examples import Example
from kvpacket_jax.data.own import corpus

VERSION = "1.0.0"  # part of every seed: raise it with any change of what is drawn
RECORDS = pathlib.Path(__file__).with_name("everyday.jsonl.gz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EverydayConfig(generated.GeneratorConfig):
    """Ranges are a number or (least, most); documents of other lengths are left out."""

    num_documents: int | tuple[int, int] = 5
    document_words: tuple[int, int] = (40, 320)
    notes: bool = False  # of each document a sentence alone, that has an answer

    def __post_init__(self):
        super().__post_init__()
        for name, limits in {"num_documents": (1, 24), "document_words": (1, 400)}.items():
            pair = generated.as_range(name, getattr(self, name), *limits)
            object.__setattr__(self, name, pair)


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
    kept = [corpus.of_length(folder, document_words, notes) for folder in folders(split)]
    return tuple(folder for folder in kept if folder)


def generate(split: str, index: int, config: EverydayConfig) -> Example:
    """Returns example `index` of `split`. Raises ValueError for an unknown split."""
    fitting = _fitting(split, config.document_words, config.notes)
    most = config.num_documents[1]
    turn, place = divmod(index, sum(map(len, fitting)) // most)
    deck = _shuffled(generated.example_rng("everyday", VERSION, config, split, -1 - turn), fitting)
    rng = generated.example_rng("everyday", VERSION, config, split, index)
    chosen = deck[place * most :][: rng.randint(*config.num_documents)]
    rng.shuffle(chosen)
    questions = corpus.questions(rng, chosen, config.num_questions)
    documents = tuple(record["text"] for record in chosen)
    return Example(f"everyday-{split}-{index}", documents, questions, config.preamble)


def _shuffled(rng: random.Random, fitting) -> list[dict]:
    """All documents, those of a folder side by side."""
    order = rng.sample(fitting, len(fitting))
    return [record for folder in order for record in rng.sample(folder, len(folder))]


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
