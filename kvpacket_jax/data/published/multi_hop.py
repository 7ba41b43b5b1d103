"""What hotpot_qa and musique share: published questions over several paragraphs, in official files.

A set is read from its official files: downloaded, or from a folder that the user gives. The splits
are this project's: "test" is the official development split (the official test splits have no
answers), "validation" every tenth record of the official training split, "train" the others.
Adapters learn from the data set wikipedia: what is in it, or needs a paragraph of it, is in neither
of the first two.
"""

import dataclasses
import os
import pathlib
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import tensorflow_datasets as tfds

from kvpacket_jax.data import generated, json_lines
from kvpacket_jax.data.examples import (
    INSTRUCTION,
    Example,
    Question,
    from_record,
    to_record,
    with_documents,
)
from kvpacket_jax.data.published import wikipedia
from models.foreign import digests

KNOWN = "adapters have learned from them (they are in the data set wikipedia)"
HELD_OUT = 10  # of so many training records one is for validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiHopConfig:
    """Options of these sets."""

    folder: str = ""  # of the official files; "": they are downloaded
    ids: str = ""  # a file of records' ids, one a line: these alone, in this order; "": all records
    num_documents: int = 20  # all gold paragraphs, however many, then the first others up to this
    # If given, so many others beside the gold ones, however many these are.
    num_distractors: int | None = None
    preamble: str = INSTRUCTION

    @property
    def num_questions(self) -> int | None:
        """How many of a record's questions are asked, the first being its own; None: all."""
        return 1

    def __post_init__(self):
        generated.as_range("num_documents", self.num_documents, 1, 20)
        if self.num_distractors is not None:
            generated.as_range("num_distractors", self.num_distractors, 1, 20)


class Paragraph(NamedTuple):
    """A document: its title and its text."""

    title: str
    text: str
    gold: bool  # whether the question needs it


class Official(NamedTuple):
    """An official file: how it is named, and where it comes from."""

    patterns: tuple[str, ...]  # of its name in a folder; the first that is there counts
    url: str = ""  # "": it cannot be downloaded by a program
    sha256: str = ""


class Dataset(NamedTuple):
    """A published set of questions.

    `read` yields the Examples of a file, or the ValueError that says what is wrong with a record.
    """

    name: str
    version: str
    home: str  # where people find it
    licence: str
    files: dict[str, Official]  # "train" and "dev"
    read: Callable[[pathlib.Path], Iterator[Example | ValueError]]


def example(name: str, paragraphs: list[Paragraph], question: str, answers, info: dict) -> Example:
    """An Example of one question; raises ValueError for an empty question, answer or title.

    A document is a paragraph's title, a line feed and its text, as the sets' authors show them.
    """
    for paragraph in paragraphs:
        json_lines.check_text("title", paragraph.title)
    gold = [i for i, p in enumerate(paragraphs) if p.gold]
    documents = tuple(f"{p.title}\n{p.text}" for p in paragraphs)
    asked = as_question(question, answers, info | {"documents": gold})
    return Example(json_lines.check_id(name), documents, (asked,))


def as_question(text: str, answers, info: dict) -> Question:
    """Raises ValueError for an empty question or answer."""
    json_lines.check_text("question", text)
    for answer in answers:
        json_lines.check_text("answer", answer)
    return Question(text, tuple(dict.fromkeys(answers)), info=info)


def trimmed(whole: Example, options: MultiHopConfig) -> Example:
    """The example with its gold paragraphs and the first others, in the same order.

    Gold is what its first question needs; its others need no more.
    """
    gold = set(whole.questions[0].info["documents"])
    others = [i for i in range(len(whole.documents)) if i not in gold]
    number = options.num_distractors
    if number is None:
        number = max(options.num_documents - len(gold), 0)
    kept = sorted(gold | set(others[:number]))

    return with_documents(whole, kept, whole.questions[: options.num_questions], whole.id)


class Records(generated.StoredBuilder):
    """The records of one official file, stored as examples."""

    VERSION = tfds.core.Version("1.1.0")  # the dataset's is in the config's name

    def _split_generators(self, dl_manager):
        config = self.builder_config
        path = config.path or _download(dl_manager, config.official)
        return {config.split: self._generate_examples(path, config)}

    def _generate_examples(self, path: pathlib.Path, config: "_Config"):
        ids, wrong, number = set(), [], 0
        for i, found in enumerate(config.dataset.read(path)):
            if isinstance(found, ValueError):
                wrong.append(f"record {i + 1}: {found}")
            elif found.id in ids:
                wrong.append(f"record {i + 1}: the id {found.id} comes twice")
            else:
                ids.add(found.id)
                if config.wants(i, found):
                    number += 1
                    yield i, to_record(found)
        json_lines.refuse(path, wrong, items="records")
        if not number:
            reason = "" if config.split == "train" else f", or {KNOWN}"
            raise ValueError(
                f"{path} has no records for the split {config.split}: it has too few{reason}."
            )


class _Config(tfds.core.BuilderConfig):
    def __init__(self, dataset: Dataset, split: str, official: Official, path: pathlib.Path | None):
        digest = official.sha256 if path is None else digests.of_file(path)
        digest = f"{generated.digest([digest, digests.of_file(wikipedia.RECORDS)]):064x}"
        described = f"{dataset.name} {dataset.version}, {dataset.home}, {dataset.licence}"
        super().__init__(
            name=f"{dataset.name}-{dataset.version}-{split}-{digest[:16]}", description=described
        )
        self.dataset, self.split, self.official, self.path = dataset, split, official, path
        self.digest = digest

    def wants(self, number: int, example: Example) -> bool:
        """Whether a record of the file is in the split."""
        if self.split == "train":
            return not _held_out(number)
        return not wikipedia.has(example) and (self.split == "test" or _held_out(number))


def _held_out(number: int) -> bool:
    return number % HELD_OUT == HELD_OUT - 1


class Source(generated.ExampleSource):
    """The stored examples of a split, each with the paragraphs that the options leave.

    Args:
      chosen: indices of those that there are; None for all.
    """

    def __init__(
        self,
        records,
        fingerprint: str,
        options: MultiHopConfig,
        chosen: Sequence[int] | None = None,
    ):
        super().__init__(records, fingerprint)
        self._options = options
        self._chosen = range(len(records)) if chosen is None else chosen
        self._first: dict[str, int] = {}  # where a question is asked that many records have
        if options.num_questions is None:
            for i, chosen_one in enumerate(self._chosen):
                for question in from_record(records[chosen_one]).questions:
                    self._first.setdefault(question.text, i)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Example:
        whole = from_record(self._records[self._chosen[index]])
        few, first = trimmed(whole, self._options), self._first
        own, *more = few.questions
        asked = (own, *(q for q in more if first[q.text] == index))
        return dataclasses.replace(few, questions=asked, preamble=self._options.preamble)


def open_published(
    dataset: Dataset, split: str, data_dir: str | os.PathLike, options: MultiHopConfig
) -> Source:
    """Returns the examples of `split`, written to `data_dir` on first use.

    Raises ValueError for an unknown split, bad records, a split without records and ids that are
    not there; FileNotFoundError where there is no file of that split, or none of ids.
    """
    generated.check_whole(split, dataset.name)
    official = dataset.files["dev" if split == "test" else "train"]
    path = _in_folder(dataset, options.folder, official) if options.folder else None
    if path is None and not official.url:
        raise FileNotFoundError(
            f"{dataset.name} cannot be downloaded by a program: fetch {official.patterns[0]} from "
            f"{dataset.home} and give its folder, --config.dataset.options.folder=DIR."
        )
    config = _Config(dataset, split, official, path)
    builder = generated.prepared(Records, config, data_dir, aloud=path is None)
    records = builder.as_data_source(split=split)
    ids = _ids(options.ids) if options.ids else None
    described = dataclasses.asdict(dataclasses.replace(options, folder="", ids=ids or ""))
    fingerprint = generated.digest([config.name, config.digest, described, split])
    chosen = None if ids is None else _places(records, ids, f"{dataset.name}'s {split}")
    return Source(records, f"{fingerprint:064x}", options, chosen)


def _ids(file: str) -> list[str]:
    path = pathlib.Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of ids {path}.")
    ids = path.read_text(encoding="utf-8").split()
    if not ids:
        raise ValueError(f"{path} has no ids; it is to have one a line.")
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"{path} has the id {twice[0]} twice.")
    return ids


def _places(records, ids: Sequence[str], what: str) -> list[int]:
    place = {from_record(record).id: i for i, record in enumerate(records)}
    if missing := [name for name in ids if name not in place]:
        raise ValueError(
            f"{what} lacks {len(missing)} of {len(ids)} ids, {missing[0]} the first: they are of "
            f"another file, or {KNOWN}."
        )
    return [place[name] for name in ids]


def _in_folder(dataset: Dataset, folder: str, official: Official) -> pathlib.Path:
    place = pathlib.Path(folder).expanduser()
    found = next(filter(None, (sorted(place.glob(p)) for p in official.patterns)), [])
    if not found:
        raise FileNotFoundError(
            f"{dataset.name} needs a file {' or '.join(official.patterns)} in {place}: "
            f"{dataset.home} has it."
        )
    if len(found) > 1:
        raise FileNotFoundError(
            f"{dataset.name} needs one file {' or '.join(official.patterns)}; {place} has "
            f"{', '.join(f.name for f in found)}. Give a folder with the one that is meant."
        )
    return found[0]


def _download(dl_manager, official: Official) -> pathlib.Path:
    try:
        # tfds tries for minutes where there is no network.
        urllib.request.urlopen(official.url, timeout=30).close()
        path = pathlib.Path(dl_manager.download(official.url))
    except Exception as error:  # tfds and requests have a dozen kinds of them
        raise FileNotFoundError(
            f"{official.url} could not be downloaded ({error}). Fetch it elsewhere and give its "
            "folder, --config.dataset.options.folder=DIR."
        ) from error
    if digests.of_file(path) != official.sha256:
        raise ValueError(
            f"{official.url} is not the file it was (SHA-256 {official.sha256}): remove {path} "
            "and try again."
        )
    return path
