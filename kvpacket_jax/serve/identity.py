"""What a store's packets are: how texts become tokens, and what their packets' identity is."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from kvpacket_jax import adapters
from kvpacket_jax.compress import Compressor
from kvpacket_jax.data import (
    TEMPLATES,
    EncodedExample,
    Example,
    Question,
    Template,
    encode_example,
)
from kvpacket_jax.data.examples import INSTRUCTION
from kvpacket_jax.packets.adapter import Adapter, describe
from kvpacket_jax.packets.packet import FIRST, Provenance, provenance_of
from kvpacket_jax.runtime import names as known_names
from kvpacket_jax.serve.primers import FromCorpus
from kvpacket_jax.storage.packet_file import packet_name
from kvpacket_jax.storage.provenance import REPLACED, Names
from models import SHARED, LanguageModel
from models.identity import digest
from models.sources.demo_models import DEMO_MODELS


class Wording(NamedTuple):
    """What a store's texts are put into."""

    name: str  # the template's
    template: Template
    instruction: str  # of the preamble


class Item(NamedTuple):
    """A packet to be there, and the documents whose packet it is (several of the same text)."""

    name: str
    tokens: Sequence[int]
    ids: list[str]


def wording(template: str, instruction: str | None = None) -> Wording:
    """The wording of a template's name, with the usual instruction if None."""
    known_names.check(template, TEMPLATES, "template")
    instruction = INSTRUCTION if instruction is None else instruction
    known_names.check_utf8(instruction, "The preamble")
    return Wording(template, TEMPLATES[template], instruction)


def names_of(
    model: LanguageModel, adapter: Adapter | None, wording: Wording, name: str | None = None
) -> Names:
    """What was given to make packets; files by their whole path, for other folders to work in.

    Args:
      name: the adapter's, as a Maker has it.
    """
    base, _, layers = model.name.partition(SHARED)
    given, _, primer = (name or "").partition(REPLACED)
    if adapter is None:
        given, parts = adapters.NONE, ""
    else:
        given, parts = given if given in adapters.names() else _placed(given), describe(adapter)
    base = base if base in DEMO_MODELS else _placed(base)
    return Names(base, given, wording.name, layers, _placed(primer), parts)


def _placed(name: str) -> str:
    """A file's or folder's whole path; any other name as it is."""
    path = pathlib.Path(name).expanduser()
    return str(path.absolute()) if name and path.exists() else name


def document_provenance(
    model: LanguageModel,
    adapter: Adapter | None,
    wording: Wording,
    choice: FromCorpus | None = None,
    compressor: Compressor | None = None,
) -> Provenance:
    """The provenance of a store's documents; the instruction is not part of it.

    Documents whose primers are chosen from the corpus are found by the choice, which needs no
    corpus; what was chosen is part of each packet's name.
    """
    template = dataclasses.asdict(wording.template)
    provenance = provenance_of(model, adapter, digest({"template": template}), compressor)
    if adapter is None or choice is None:
        return provenance
    chosen = digest({"adapter": provenance.adapter, "primer": choice.label})
    return dataclasses.replace(provenance, adapter=chosen)


def opening_provenance(
    model: LanguageModel, documents_by: Provenance, wording: Wording
) -> Provenance:
    """The provenance of a build's packets of documents that come first.

    They were read after one preamble: a store has others for another, and for another build.

    Args:
      documents_by: as `document_provenance` returns it.
    """
    primer = digest(encode(model, wording).preamble)
    return dataclasses.replace(documents_by, place=FIRST, primer=primer)


def preamble_item(model: LanguageModel, wording: Wording) -> tuple[Provenance, Item | None]:
    """The preamble's packet, which is never wrapped; None where the template puts no token there.

    Raises ValueError for a model whose chat template is not known.
    """
    template = dataclasses.asdict(wording.template)
    provenance = provenance_of(
        model, None, digest({"template": template, "preamble": wording.instruction})
    )
    tokens = encode(model, wording).preamble
    item = Item(packet_name(provenance, tokens, len(tokens)), tokens, [])
    return provenance, item if tokens else None


def encode(model: LanguageModel, wording: Wording, *questions: Question) -> EncodedExample:
    """The preamble and questions as token ids, without documents."""
    example = Example("", (), questions, wording.instruction)
    return encode_example(model.tokenizer, wording.template, example)
