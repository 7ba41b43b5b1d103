"""Adapters by name: those that come with the project, the primer, and folders of trained ones."""

import json
import pathlib

import jax.numpy as jnp
from etils import epath

import models
from kvpacket_jax.adapters import card
from kvpacket_jax.data import TEMPLATES, Example, encode_example
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.runtime import hosts
from kvpacket_jax.runtime import names as known_names
from models import LanguageModel

PRIMER = "primer"  # the name of an adapter that needs no training: only texts of several genres
NONE = "none"
FOLDER = pathlib.Path(__file__).parent


def shipped() -> dict[str, pathlib.Path]:
    """Trained adapters that come with the project. One with its model's name is that model's
    default: on every kind of its card F1 is no lower than the primer's and higher than bare ones'.
    """
    return {p.name: p for p in sorted(FOLDER.glob("*")) if (p / adapter_lib.CHECKPOINT).exists()}


def names() -> tuple[str, ...]:
    """What `choose` takes besides folders."""
    return (*shipped(), PRIMER, NONE)


def name_for(model: LanguageModel, name: str | None) -> str:
    """The name of the adapter that `choose` takes: the one given, else the model's default."""
    return name or default_for(model.name)


def default_for(model_name: str) -> str:
    """The name of the adapter that a model has where none is asked for."""
    return model_name if model_name in shipped() else PRIMER


def folder(name: str) -> epath.Path:
    """Where an adapter lies: a shipped name's folder, else `name` itself, gs://… too."""
    return hosts.absolute(shipped().get(name) or name)


def card_path(model: LanguageModel, name: str, template: str = "chat") -> epath.Path:
    """Where an adapter's card lies: beside it.

    The primer's, one for each model and template, lies in the cache folder.
    """
    if name == PRIMER:
        folder_of_cards = models.default_cache_dir().parent / "primer_cards"
        of = "" if template == "chat" else f"-{template}"
        return epath.Path(folder_of_cards / f"{model.fingerprint[:16]}{of}.json")
    return folder(name) / card.FILE


def choose(
    model: LanguageModel,
    name: str | None = None,
    template: str = "chat",
    other_model: bool = False,
) -> Adapter | None:
    """The adapter that documents are wrapped in; None for "none".

    Args:
      name: the folder of a trained one, a shipped name, "primer" (`primer`) or "none". None: what
        is shipped for the model, else the primer.
      template: the primer's wording, a name of TEMPLATES.
      other_model: accepts an adapter that was trained for another model of the same width.

    Raises:
      FileNotFoundError: neither a folder nor a known name.
      ValueError: not an adapter, or one for another model.
    """
    name = name_for(model, name)
    if name == NONE:
        return None
    if name == PRIMER:
        return primer(model, template)
    return _trained(str(name), model, other_model)


def known_card(name: str, path: epath.PathLike | None = None) -> card.Card:
    """What was measured of a trained adapter: its card, read without a model.

    Args:
      name: a folder or a shipped name.
      path: where the card lies; None: beside the adapter.

    Raises:
      FileNotFoundError: no such adapter, or no card there.
      ValueError: the card is another adapter's; as `adapter.load_adapter` and `card.read`.
    """
    adapter = _trained(name)
    path = hosts.absolute(path) if path else folder(name) / card.FILE
    known = card.read(path, adapter)
    if known is None and path.exists():
        raise ValueError(
            f"{path} is the card of another adapter than {name}, or of this one before."
        )
    if known is None:
        raise FileNotFoundError(f"{name} has no card: there is no {path}. launch.card measures it.")
    return known


def _trained(name: str, model: LanguageModel | None = None, other_model: bool = False) -> Adapter:
    try:
        return adapter_lib.load_adapter(folder(name), model, other_model)
    except FileNotFoundError:
        close = known_names.by_similarity(str(name), names(), len(names()))
        raise FileNotFoundError(
            f"There is no adapter {name}: no such folder. By name: {', '.join(close)}."
        ) from None


def primer(model: LanguageModel, template: str = "chat", documents=None) -> Adapter:
    """An adapter that is a primer alone: the template's preamble and a few texts, as token ids.

    It needs no training, so every model has it. Packets are built after the texts, which lie in
    documents of several genres by default, and nothing of them is stored.

    Args:
      documents: texts; those of primer.json if None.

    Raises:
      ValueError: a model without a tokenizer or chat template.
    """
    model.check_tokenizer()
    if documents is None:
        documents = json.loads((FOLDER / "primer.json").read_text())["documents"]
    example = Example(PRIMER, tuple(documents), ())
    encoded = encode_example(model.tokenizer, TEMPLATES[template], example)
    ids = [t for part in (encoded.preamble, *encoded.documents) for t in part]
    return adapter_lib.empty(model.config.dim)._replace(primer=jnp.array(ids, jnp.int32))
