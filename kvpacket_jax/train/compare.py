"""Adapters side by side, on the kinds of documents that a config of training validates on."""

from collections.abc import Sequence

import rich.table
from ml_collections import ConfigDict

from kvpacket_jax import adapters
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.runtime.format import number
from kvpacket_jax.runtime.format import table as empty_table
from kvpacket_jax.runtime.progress import SILENT, Progress
from kvpacket_jax.train import progress as progress_lib
from kvpacket_jax.train import run, validation
from kvpacket_jax.train.validation import Scores, variants
from models import LanguageModel

SCALE = "@"  # NAME@0.6: with its writer's change 0.6 times as large


def compare(
    config: ConfigDict,
    names: Sequence[str],
    cache_dir=None,
    mesh: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Scores]:
    """The scores of each adapter, by its name as given.

    Args:
      config: configs/train.py's; its model, template and validation count.
      names: what `adapters.choose` takes, with "@0.6" after it for a smaller change of the writer.
      progress: is told the scores of each as they come.

    Raises:
      FileNotFoundError, ValueError: no such adapter, or one of another model.
    """
    model = run.load_model(config, cache_dir, mesh)
    chosen = {name: _choose(model, name, config) for name in names}
    if max(config.keeps) == min(config.keeps) == 1:  # whole packets are built without a distiller
        chosen = {name: adapter._replace(distiller=None) for name, adapter in chosen.items()}
    soft_tokens = max(adapter.num_tokens for adapter in chosen.values())
    validate = validation.of_config(model, config, soft_tokens)
    scores = {}
    made = variants(model, list(chosen.values()), config.opening)
    for name, variant in zip(chosen, made, strict=True):
        scores[name] = validate(variant)
        progress.say(f"{name}: {progress_lib.kinds_line(scores[name])}")
    return scores


def _choose(model: LanguageModel, name: str, config: ConfigDict) -> Adapter:
    source, at, scale = name.rpartition(SCALE)
    if not at or adapters.folder(name).exists():
        source, at = name, ""
    adapter = adapters.choose(model, source, config.template, config.other_model)
    adapter = adapter or adapter_lib.empty(model.config.dim)
    if not at:
        return adapter
    try:
        part = float(scale)
    except ValueError:
        raise ValueError(f"{name}: a number stands after {SCALE}, as in {source}@0.6.") from None
    if adapter.writer is None:
        raise ValueError(f"{name}: {source} has no writer whose change could be scaled.")
    return adapter_lib.rounded(adapter_lib.scaled(adapter, part))


def table(scores: dict[str, Scores]) -> rich.table.Table:
    """A line a kind: KL of an answer, and the same answer where the full context is right."""
    # All columns fold: names of adapters are paths, and a terminal has room for few of them.
    shown = empty_table(("documents (questions)", *scores))
    for kind, first in next(iter(scores.values())).items():
        of_kind = (by_kind[kind] for by_kind in scores.values())
        cells = (f"{s['kl']:.2f}, {number(s['same_right'])}" for s in of_kind)
        shown.add_row(f"{kind} ({first['questions']})", *cells)
    return shown
