"""What documents are read after while their packets are built, where a user chooses it.

FILE       the texts of a file, in place of the adapter's own primer
corpus:K   K documents spread over the corpus, the same for all; one that is built itself gives its
           place to another
similar:K  for each document the K most similar ones of the corpus (FusionRAG's preprocessing, arXiv
           2601.12904), the most similar directly before it

A document never primes itself, nor one of the same token ids. An adapter's own primer is texts that
came with it, so that nothing of one document reaches another unless it is asked for here.
"""

import itertools
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvpacket_jax import adapters
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.serve import corpus
from kvpacket_jax.similarity import Index
from kvpacket_jax.storage.provenance import REPLACED
from models import LanguageModel

# Tokens that are read of a document of the corpus that primes others: similar:K reads K of them
# for every document, and no long one should keep short ones from fitting the model's context.
LONGEST = 512
WAYS = (
    "--primer takes a file of texts, corpus:K (K documents of the corpus) or similar:K (for each "
    "document the K most similar ones)"
)


class Texts(NamedTuple):
    """The texts of a file."""

    label: str
    texts: tuple[str, ...]


class FromCorpus(NamedTuple):
    """Documents of the corpus that is built."""

    kind: str  # "corpus" or "similar"
    number: int

    @property
    def label(self) -> str:
        return f"{self.kind}:{self.number}"


class Maker(NamedTuple):
    """What packets are built with: an adapter with its name, and what is chosen to prime it."""

    adapter: Adapter | None
    adapter_name: str | None
    choice: FromCorpus | None = None  # the adapter then has no primer of its own


def parse(primer: str | os.PathLike | None) -> Texts | FromCorpus | None:
    """What "corpus:3", "similar:3" or the path of a file asks for; None for the adapter's own.

    A file that ends in .jsonl has lines {"id": "…", "text": "…"}; any other is one text.

    Raises FileNotFoundError, ValueError: neither of these, or a file without a text.
    """
    if primer is None:
        return None
    if (choice := of_corpus(str(primer))) is not None:
        return choice
    path = pathlib.Path(primer).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no primer {str(primer)!r}: no such file. {WAYS}.")
    if path.suffix == ".jsonl":
        return Texts(str(primer), tuple(d.text for d in corpus.read_file(path, corpus.refusing())))
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}. {WAYS}.") from error
    if not text.strip():
        raise ValueError(f"{path} has no text. {WAYS}.")
    return Texts(str(primer), (text,))


def of_corpus(primer: str) -> FromCorpus | None:
    """What "corpus:3" or "similar:3" asks for, None for any other text; ValueError as `parse`."""
    kind, colon, number = primer.partition(":")
    if not colon or kind not in ("corpus", "similar"):
        return None
    if not re.fullmatch(r"[1-9]\d*", number):
        raise ValueError(f"{primer} has no number of documents: as {kind}:3. {WAYS}.")
    return FromCorpus(kind, int(number))


def check(adapter: object, primer: Texts | FromCorpus | None) -> None:
    """Raises ValueError where bare packets are asked for and a primer too."""
    if primer is not None and adapter == adapters.NONE:
        raise ValueError(
            "Bare packets have no primer. Leave out --adapter=none to have the model's adapter "
            "with this primer, give --adapter=primer for a primer alone, or leave out --primer."
        )


def maker(
    model: LanguageModel,
    adapter: Adapter | str | os.PathLike | None,
    primer: Texts | FromCorpus | None = None,
    template: str = "chat",
    other_model: bool = False,
) -> Maker:
    """An adapter, its primer replaced where another is asked for; soft tokens and writer stay.

    Args:
      adapter: one, or a name as `adapters.choose` takes it.
      primer: as `parse` returns it.
      template, other_model: as in `adapters.choose`.

    Raises:
      FileNotFoundError, ValueError: as `check` and `adapters.choose`; or a primer that is longer
        than the model's context.
    """
    check(adapter, primer)
    if isinstance(adapter, Adapter):
        name = None
    else:
        given = None if adapter is None else str(adapter)
        name = adapters.name_for(model, given)
        adapter = adapters.choose(model, given, template, other_model)
    if primer is None:
        return Maker(adapter, name)
    label = f"{name or ''}{REPLACED}{primer.label}"
    if isinstance(primer, FromCorpus):
        return Maker(adapter._replace(primer=None), label, primer)
    ids = adapters.primer(model, template, primer.texts).primer
    if len(ids) >= model.config.max_positions:
        raise ValueError(
            f"The primer {primer.label} has {len(ids):,} tokens; the context of {model.name} is "
            f"{model.config.max_positions:,}, documents included. Shorten it: a few hundred do."
        )
    return Maker(adapter._replace(primer=ids), label)


def is_replaced(adapter_name: str) -> bool:
    """Whether an adapter that `maker` named has another primer than its own."""
    return REPLACED in adapter_name


def chooser(
    choice: FromCorpus, documents: Sequence[Sequence[int]]
) -> Callable[[int], tuple[int, ...]]:
    """A function that says for each document of a corpus which others it is read after.

    Args:
      documents: token ids of each, no two the same.

    Returns:
      The function: from a document's number to those of K others, in the order to be read in. With
      "corpus" they are K + 1 different tuples at most.

    Raises ValueError for a corpus of K documents or fewer.
    """
    if len(documents) <= choice.number:
        raise ValueError(
            f"--primer={choice.label} takes {choice.number} other documents for each; the corpus "
            f"has {len(documents)} of different texts. Give more documents, a smaller number, or "
            "a file of other texts: --primer=FILE."
        )
    if choice.kind == "similar":
        index = Index(documents)
        return lambda i: tuple(reversed(index.closest(i, choice.number)))
    *chosen, spare = spread(documents, choice.number + 1)
    return lambda i: tuple(spare if j == i else j for j in chosen)


def spread(documents: Sequence[Sequence[int]], number: int) -> list[int]:
    """One document of each of `number` equal stretches of a corpus: the nearest to median length.

    `number` is at most that of the documents; of equally near ones the first is taken.
    """
    lengths = [len(document) for document in documents]
    median = sorted(lengths)[len(lengths) // 2]
    ends = [len(documents) * i // number for i in range(number + 1)]
    stretches = itertools.starmap(range, itertools.pairwise(ends))
    return [min(stretch, key=lambda i: abs(lengths[i] - median)) for stretch in stretches]


def cut(document: Sequence[int]) -> Sequence[int]:
    """What is read of a document that primes others; the document itself where nothing is cut."""
    return document if len(document) <= LONGEST else document[:LONGEST]
