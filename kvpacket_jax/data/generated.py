"""Generated data sets: seeds, splits and the tensorflow-datasets builder they share.

An example is a pure function of (data set, version, config, split, index); a builder only
stores what that function returns.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import random
from collections.abc import Callable, Sequence

import tensorflow_datasets as tfds
from absl import logging

from kvpacket_jax.data.examples import INSTRUCTION, Example, from_record, to_record

# Shares of every pool of names, values and keys: what one split uses no other does.
SPLITS = {"train": 0.6, "validation": 0.2, "test": 0.2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Options of every generated set; sizes and `preamble` do not change what is drawn."""

    seed: int = 0
    num_train: int = 2000
    num_validation: int = 200
    num_test: int = 200
    num_questions: int = 12
    preamble: str = INSTRUCTION

    def __post_init__(self):
        for name in (*(f"num_{s}" for s in SPLITS), "num_questions"):
            as_range(name, (getattr(self, name), getattr(self, name)), 1, 10_000_000)

    def make_ranges(self, **limits: tuple[int, int]) -> None:
        """Makes fields that are a number or a range ranges, between their limits; for subclasses.

        Raises ValueError as `as_range`.
        """
        for name, (low, high) in limits.items():
            object.__setattr__(self, name, as_range(name, getattr(self, name), low, high))


def example_rng(name: str, version: str, config, split: str, index: int) -> random.Random:
    """Returns the random generator of one example, the same in every process.

    Raises ValueError for a split that does not exist.
    """
    check_split(split)
    drawn = {
        k: v
        for k, v in dataclasses.asdict(config).items()
        if k != "preamble" and k not in {f"num_{s}" for s in SPLITS} and v is not False
    }  # what is switched off is left out: a new switch changes no example of those without it
    return random.Random(digest([name, version, drawn, split, index]))


def fingerprint(name: str, version, config: GeneratorConfig, split: str) -> str:
    """Names all that the examples of a generated set are a function of."""
    return f"{digest([name, str(version), dataclasses.asdict(config), split]):064x}"


def pool_of(pool: Sequence, split: str) -> tuple:
    """Returns the part of `pool` that belongs to `split`; the parts are disjoint."""
    check_split(split)
    shuffled = sorted(pool)
    random.Random(0).shuffle(shuffled)
    start = 0.0
    for name, share in SPLITS.items():
        stop = start + share
        if name == split:
            return tuple(shuffled[round(start * len(pool)) : round(stop * len(pool))])
        start = stop


def check_split(split: str) -> None:
    """Raises ValueError unless `split` (which may end in a slice, "test[:10%]") exists."""
    if split.split("[")[0] not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")


def check_whole(split: str, name: str) -> None:
    """Raises ValueError unless `split` exists and is no slice, for sets that are not stored."""
    check_split(split)
    if split not in SPLITS:
        raise ValueError(f"{name} has no slices, {split!r}: give {', '.join(SPLITS)}")


def check_options(name: str, config_class: type, options: dict) -> None:
    """Raises TypeError for options that the configuration of a data set does not have."""
    known = [f.name for f in dataclasses.fields(config_class)]
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}")


def as_range(name: str, value, low: int, high: int) -> tuple[int, int]:
    """Returns `value`, a number or a (least, most) pair, as a pair.

    A tuple of one counts as its number: a config's flag makes one of a number. Raises ValueError
    for anything else, or what leaves [low, high].
    """
    pair = (value, value) if isinstance(value, int) else tuple(value)
    pair = pair * 2 if len(pair) == 1 else pair
    if len(pair) != 2 or not low <= pair[0] <= pair[1] <= high:
        raise ValueError(f"{name}={value!r}: give a number, or (least, most), from {low} to {high}")
    return pair


def as_choices(name: str, value, known: Sequence[str]) -> tuple[str, ...]:
    """Returns `value`, one name or several, as a tuple; ValueError names the unknown ones."""
    chosen = (value,) if isinstance(value, str) else tuple(value)
    unknown = [c for c in chosen if c not in known]
    if unknown or not chosen:
        raise ValueError(f"{name}={value!r}: choose from {', '.join(known)}")
    return chosen


class GeneratedConfig(tfds.core.BuilderConfig):
    """The builder's name for a config: a digest, so that each has a folder of its own."""

    def __init__(self, options: GeneratorConfig):
        described = json.dumps(dataclasses.asdict(options))
        super().__init__(
            name=f"{digest(dataclasses.asdict(options)):064x}"[:16], description=described
        )
        self.options = options


class StoredBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stores examples as flat records."""

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            "id": text,
            "preamble": text,
            "questions": text,
            "documents": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )


class GeneratedBuilder(StoredBuilder, skip_registration=True):
    """Stores `generate(split, index, config)`; a subclass sets VERSION and `generate`."""

    generate: Callable[[str, int, GeneratorConfig], Example]

    def _split_generators(self, dl_manager):
        options = self.builder_config.options
        return {s: self._generate_examples(s, getattr(options, f"num_{s}")) for s in SPLITS}

    def _generate_examples(self, split: str, number: int):
        for index in range(number):
            yield index, to_record(self.generate(split, index, self.builder_config.options))


class ExampleSource(Sequence):
    """Random access to the examples of a stored split; an index past the end is an IndexError.

    `fingerprint` names all that the examples are a function of.
    """

    def __init__(self, records, fingerprint: str):
        self._records, self.fingerprint = records, fingerprint

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return from_record(self._records[range(len(self))[index]])


class DrawnSource(Sequence):
    """The examples `generate(split, index, config)` of a split, made when they are read.

    `fingerprint` names all that they are a function of.
    """

    def __init__(self, generate: Callable, split: str, config: GeneratorConfig, fingerprint: str):
        self._generate, self._split, self._config = generate, split, config
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return getattr(self._config, f"num_{self._split}")

    def __getitem__(self, index: int) -> Example:
        return self._generate(self._split, range(len(self))[index], self._config)


def open_generated(
    builder_class: type[GeneratedBuilder],
    config_class: type,
    split: str,
    data_dir: str | os.PathLike,
    **options,
) -> ExampleSource:
    """Returns the examples of `split` with `options`, written to `data_dir` on first use.

    Raises TypeError for an unknown option, ValueError for a bad value or split.
    """
    check_split(split)
    check_options(builder_class.name, config_class, options)
    config = GeneratedConfig(config_class(**options))

    builder = prepared(builder_class, config, data_dir)
    drawn_from = fingerprint(builder_class.name, builder_class.VERSION, config.options, split)
    return ExampleSource(builder.as_data_source(split=split), drawn_from)


def prepared(
    builder_class: type[StoredBuilder],
    config: tfds.core.BuilderConfig,
    data_dir: str | os.PathLike,
    aloud: bool = False,
) -> StoredBuilder:
    """The builder of a config, its examples written to `data_dir` on first use.

    Args:
      aloud: shows tfds's bars, for sets that are downloaded.
    """
    make = functools.partial(
        builder_class, config=config, data_dir=os.fspath(data_dir), file_format="array_record"
    )
    with _quiet(aloud):
        builder = make()
        try:
            builder.download_and_prepare()
        except OSError:
            # Another process may have put its copy, which is the same, into place first.
            builder = make()
            if not builder.is_prepared():
                raise
        return builder


@contextlib.contextmanager
def _quiet(bars: bool):
    """tfds announces a download, draws bars and warns of every config that it does not know.

    Mostly nothing is downloaded, writing takes a second or two, and every config is new to it.
    """
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    (tfds.enable_progress_bar if bars else tfds.disable_progress_bar)()
    try:
        with contextlib.nullcontext() if bars else contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(level)


def digest(value) -> int:
    """A number of 256 bits that names a JSON-able value."""
    return int(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest(), 16)
