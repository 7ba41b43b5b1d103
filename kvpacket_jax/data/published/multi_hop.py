"""What hotpot_qa and musique share: published questions over several paragraphs, in official files.

A set is read from its official files: downloaded, or from a folder that the user gives. The splits
are this project's: "test" is the official development split (the official test splits have no
answers) without the records that wikipedia has, "validation" every tenth record of the official
training split, "train" the others.
"""

import dataclasses
import os
import pathlib
import urllib.request
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow_datasets as tfds

from kvpacket_jax.data import generated, json_lines
from kvpacket_jax.data.examples import INSTRUCTION, Example, Question, to_record
from models.foreign import digests

HELD_OUT = 10  # of so many training records one is for validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiHopConfig:
    """Options of these sets."""

    folder: str = ""  # of the official files; "": they are downloaded
    num_documents: int = 20  # all gold paragraphs, however many, then the first others up to this
    preamble: str = INSTRUCTION

    def __post_init__(self):
        generated.as_range("num_documents", self.num_documents, 1, 20)


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
    Records of the development file whose ids are in `elsewhere` are left out: another set of this
    project has them.
    """

    name: str
    version: str
    home: str  # where people find it
    licence: str
    files: dict[str, Official]  # "train" and "dev"
    read: Callable[[pathlib.Path], Iterator[Example | ValueError]]
    elsewhere: frozenset[str] = frozenset()


def example(name: str, paragraphs: list[Paragraph], question: str, answers, info: dict) -> Example:
    """An Example of one question; raises ValueError for an empty question, answer or title.

    A document is a paragraph's title, a line feed and its text, as the sets' authors show them.
    """
    json_lines.check_text("question", question)
    for answer in answers:
        json_lines.check_text("answer", answer)
    for paragraph in paragraphs:
        json_lines.check_text("title", paragraph.title)
    gold = [i for i, p in enumerate(paragraphs) if p.gold]
    documents = tuple(f"{p.title}\n{p.text}" for p in paragraphs)
    asked = Question(question, tuple(dict.fromkeys(answers)), info=info | {"documents": gold})
    return Example(json_lines.check_id(name), documents, (asked,))


def trimmed(whole: Example, num_documents: int) -> Example:
    """The example with its gold paragraphs and the first others, in the same order."""
    (question,) = whole.questions
    gold = set(question.info["documents"])
    others = [i for i in range(len(whole.documents)) if i not in gold]
    kept = sorted(gold | set(others[: max(num_documents - len(gold), 0)]))
    info = question.info | {"documents": [kept.index(i) for i in sorted(gold)]}
    return dataclasses.replace(
        whole,
        documents=tuple(whole.documents[i] for i in kept),
        questions=(dataclasses.replace(question, info=info),),
    )


class Records(generated.StoredBuilder):
    """The records of one official file, stored as examples."""

    VERSION = tfds.core.Version("1.0.0")  # the dataset's is in the config's name

    def _split_generators(self, dl_manager):
        config = self.builder_config
        path = config.path or _download(dl_manager, config.official)
        if config.part == "dev":
            elsewhere = config.dataset.elsewhere
            return {"test": self._generate_examples(path, lambda i, id: id not in elsewhere)}
        held = lambda i, id: i % HELD_OUT == HELD_OUT - 1  # noqa: E731
        return {
            "train": self._generate_examples(path, lambda i, id: not held(i, id)),
            "validation": self._generate_examples(path, held),
        }

    def _generate_examples(self, path: pathlib.Path, wanted: Callable[[int, str], bool]):
        ids = set()
        for i, found in enumerate(self.builder_config.dataset.read(path)):
            if isinstance(found, ValueError):
                raise ValueError(f"{path}, record {i + 1}: {found}")
            if found.id in ids:
                raise ValueError(f"{path}, record {i + 1}: the id {found.id} comes twice")
            ids.add(found.id)
            if wanted(i, found.id):
                yield i, to_record(found)


class _Config(tfds.core.BuilderConfig):
    def __init__(self, dataset: Dataset, part: str, official: Official, path: pathlib.Path | None):
        digest = official.sha256 if path is None else digests.of_file(path)
        if part == "dev" and dataset.elsewhere:  # its records are fewer
            digest = f"{generated.digest([digest, sorted(dataset.elsewhere)]):064x}"
        described = f"{dataset.name} {dataset.version}, {dataset.home}, {dataset.licence}"
        super().__init__(
            name=f"{dataset.name}-{dataset.version}-{part}-{digest[:16]}", description=described
        )
        self.dataset, self.part, self.official, self.path = dataset, part, official, path
        self.digest = digest


class Source(generated.ExampleSource):
    """The stored examples of a split, each with at most `num_documents` paragraphs."""

    def __init__(self, records, fingerprint: str, options: MultiHopConfig):
        super().__init__(records, fingerprint)
        self._options = options

    def __getitem__(self, index: int) -> Example:
        whole = trimmed(super().__getitem__(index), self._options.num_documents)
        return dataclasses.replace(whole, preamble=self._options.preamble)


def open_published(
    dataset: Dataset, split: str, data_dir: str | os.PathLike, options: MultiHopConfig
) -> Source:
    """Returns the examples of `split`, written to `data_dir` on first use.

    Raises ValueError for an unknown split and for a bad record, FileNotFoundError where there is
    no file of that split.
    """
    generated.check_whole(split, dataset.name)
    part = "dev" if split == "test" else "train"
    official = dataset.files[part]
    path = _in_folder(dataset, options.folder, official) if options.folder else None
    if path is None and not official.url:
        raise FileNotFoundError(
            f"{dataset.name} cannot be downloaded by a program: fetch {official.patterns[0]} from "
            f"{dataset.home} and give its folder, --config.dataset.options.folder=DIR."
        )
    config = _Config(dataset, part, official, path)
    builder = generated.prepared(Records, config, data_dir, aloud=path is None)
    described = dataclasses.asdict(dataclasses.replace(options, folder=""))
    fingerprint = generated.digest([config.name, config.digest, described, split])
    return Source(builder.as_data_source(split=split), f"{fingerprint:064x}", options)


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
