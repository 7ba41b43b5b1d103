"""Paragraphs of Wikipedia with questions: prose that no pattern wrote.

wikipedia.jsonl.gz holds records of HotpotQA (Yang et al. 2018, CC BY-SA 4.0; 100 of its training
split, 476 of its development split) and of MuSiQue's training split (Trivedi et al. 2022, CC BY
4.0), their text unchanged, no paragraph twice; hotpot_qa and musique neither test nor validate with
what needs them. To their own questions come, for each document, what its title is, and completions:
a sentence, cut in its middle, to be continued. They cost nothing, and an answer shows that the
place was located.
"""

import dataclasses
import functools
import gzip
import json
import os
import pathlib
from collections.abc import Iterable

from kvpacket_jax.data import generated, passages
from kvpacket_jax.data.examples import Example, Question

VERSION = "1.1.0"  # part of every seed: raise it with any change of what is drawn
RECORDS = pathlib.Path(__file__).with_name("wikipedia.jsonl.gz")

HOTPOT_QA = "hotpotqa-"  # what ids of its records begin with
TRIED = 40  # records that an example may take questions from


@dataclasses.dataclass(frozen=True, kw_only=True)
class WikipediaConfig(generated.GeneratorConfig):
    """Ranges are a number or (least, most); paragraphs of other lengths are left out.

    related: beside the gold paragraphs of a question stand those that were found for it, as in a
      request; otherwise paragraphs of anything.
    """

    num_documents: int | tuple[int, int] = 5
    document_words: tuple[int, int] = (50, 90)
    related: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.make_ranges(num_documents=(1, 20), document_words=(20, 400))


@functools.cache
def records(split: str) -> tuple[dict, ...]:
    """Returns the records of `split`: id, questions, and paragraphs, each gold or not."""
    with gzip.open(RECORDS, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    return tuple(json.loads(line) for line in generated.pool_of(lines, split))


@functools.cache
def hotpot_qa_ids() -> frozenset[str]:
    """HotpotQA's own ids of the records here."""
    ids = (record["id"] for record in _every_record())
    return frozenset(i.removeprefix(HOTPOT_QA) for i in ids if i.startswith(HOTPOT_QA))


def has(example: Example) -> bool:
    """Whether a published example is one of the records here, or needs a paragraph of theirs.

    Adapters learn from these, and are chosen by them.
    """
    needed = {example.documents[i] for q in example.questions for i in q.info["documents"]}
    return example.id in hotpot_qa_ids() or not needed.isdisjoint(_documents())


@functools.cache
def _documents() -> frozenset[str]:
    paragraphs = (p for record in _every_record() for p in record["paragraphs"])
    return frozenset(f"{p['title']}\n{p['text']}" for p in paragraphs)


def _every_record() -> Iterable[dict]:
    return (record for split in generated.SPLITS for record in records(split))


def generate(split: str, index: int, config: WikipediaConfig) -> Example:
    """Returns example `index` of `split`. Raises ValueError for an unknown split."""
    rng = generated.example_rng("wikipedia", VERSION, config, split, index)
    number = rng.randint(*config.num_documents)
    chosen, questions = [], []
    for record in rng.sample(records(split), TRIED):
        gold = [p for p in record["paragraphs"] if p["gold"]]
        if record["questions"] and len(chosen) + len(gold) <= number and _all_fit(gold, config):
            chosen += gold
            questions += [(question, gold) for question in record["questions"]]
            if config.related:
                found = [p for p in record["paragraphs"] if not p["gold"] and _fits(p, config)]
                chosen += [p for p in found if p not in chosen][: number - len(chosen)]
    while len(chosen) < number:
        paragraph = rng.choice(rng.choice(records(split))["paragraphs"])
        if _fits(paragraph, config) and paragraph not in chosen:
            chosen.append(paragraph)
    rng.shuffle(chosen)
    questions = [_asked(q, map(chosen.index, gold)) for q, gold in questions]
    questions = questions[: config.num_questions]
    further = [
        q for i, p in enumerate(chosen) for q in (_about(i, p), *passages.cuts(rng, i, p["text"]))
    ]
    rng.shuffle(further)
    questions += further[: config.num_questions - len(questions)]
    documents = tuple(f"{p['title']}\n{p['text']}" for p in chosen)
    return Example(f"wikipedia-{split}-{index}", documents, tuple(questions), config.preamble)


def _all_fit(paragraphs: list[dict], config: WikipediaConfig) -> bool:
    return all(_fits(p, config) for p in paragraphs)


def _fits(paragraph: dict, config: WikipediaConfig) -> bool:
    least, most = config.document_words
    return least <= len(paragraph["text"].split()) <= most


def _asked(question: dict, documents: Iterable[int]) -> Question:
    info = {"kind": f"{question['hops']}_hop", "documents": sorted(documents)}
    return Question(question["text"], tuple(question["answers"]), "question", info)


def _about(document: int, paragraph: dict) -> Question:
    first = passages.SENTENCE_END.split(paragraph["text"])[0]
    info = {"kind": "about", "documents": [document]}
    return Question(f"Who or what is {paragraph['title']}?", (first,), "question", info)


class Source(generated.DrawnSource):
    """The examples of a split, generated when they are read."""

    def __init__(self, split: str, config: WikipediaConfig):
        generated.check_whole(split, "wikipedia")
        paragraphs = [p for record in records(split) for p in record["paragraphs"]]
        fitting, needed = sum(_fits(p, config) for p in paragraphs), config.num_documents[1]
        if fitting < needed:
            raise ValueError(
                f"wikipedia's {split} has {fitting} paragraphs of {config.document_words} words, "
                f"fewer than the {needed} documents of an example: give a wider document_words."
            )
        fingerprint = generated.fingerprint("wikipedia", VERSION, config, split)
        super().__init__(generate, split, config, fingerprint)


def source(split: str, data_dir: str | os.PathLike, **options) -> Source:
    """Returns the examples of `split`; `options` are WikipediaConfig's. Nothing is written."""
    generated.check_options("wikipedia", WikipediaConfig, options)
    return Source(split, WikipediaConfig(**options))
