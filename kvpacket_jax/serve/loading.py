"""A model, and what the packets of a store are made with, from their names."""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import models
from kvpacket_jax import adapters
from kvpacket_jax.compress import Compressor
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.serve import primers
from kvpacket_jax.serve.primers import FromCorpus
from kvpacket_jax.storage import store
from models import LanguageModel, sharding
from models.sources.demo_models import DEMO_MODELS


class Loaded(NamedTuple):
    """A model, and the fields of the Maker of its documents' packets, with their compressor."""

    model: LanguageModel
    adapter: Adapter | None
    adapter_name: str
    choice: FromCorpus | None
    compressor: Compressor | None = None


def load_for_store(
    source: str,
    dtype: str,
    folder: pathlib.Path,
    cache_dir: pathlib.Path | None = None,
    adapter: str | None = None,
    template: str = "chat",
    other_model: bool = False,
    mesh: str | None = None,
    primer: primers.Texts | FromCorpus | None = None,
    compressor: Compressor | None = None,
    shared_layers: str = "",
) -> Loaded:
    """A model and an adapter to build or read the store `folder` with.

    Args:
      dtype: "auto" is the dtype of the store's packets, if they have but one.
      adapter, template, other_model, primer: as `primers.maker` takes them.
      mesh, shared_layers: as models.load takes them.
      compressor: of the documents' packets.
    """
    primers.check(adapter, primer)
    dtype = store.resolved_dtype(folder, dtype)
    model = models.load_text_model(source, dtype, cache_dir, mesh, shared_layers)
    sharding.log_layout(model.config, model.params)
    maker = primers.maker(model, adapter, primer, template, other_model)
    return Loaded(model, *maker, compressor)


def check_found(built_with: Mapping[str, str]) -> None:
    """Raises ValueError where documents were built with what is not on this machine.

    A store may come from elsewhere: what it names is neither looked for nor fetched.

    Args:
      built_with: flags, as `ways.built_with` returns them.
    """
    known = {"model": DEMO_MODELS, "adapter": adapters.names()}
    for flag in ("model", "adapter", "primer"):
        name = built_with.get(flag, "")
        if name in ("", *known.get(flag, ())) or (flag == "primer" and primers.of_corpus(name)):
            continue
        if not pathlib.Path(name).expanduser().exists():
            raise ValueError(
                f"The documents were built with --{flag}={name}, which is not on this machine by "
                f"that name: give --{flag}."
            )
