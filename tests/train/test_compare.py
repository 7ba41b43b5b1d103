"""Adapters side by side: each is scored as it would be alone, whatever stands beside it."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

import models
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.runtime.format import number
from kvpacket_jax.runtime.progress import Progress
from kvpacket_jax.train import compare, run, validation
from models import low_rank
from tests.support import byte_train
from tests.support.training import texts


@pytest.fixture(scope="module")
def model(byte_model):
    return models.load(str(byte_model), "float32")


@pytest.fixture(scope="module")
def config(byte_model) -> ConfigDict:
    whole = byte_train.get_config(str(texts(byte_model)))
    kinds = {"it": whole.validation.it.to_dict() | {"sets": 2}}
    given = {"template": "completion", "batch_size": 1, "keeps": (1.0,), "other_model": False}
    return ConfigDict(given | {"validation": kinds, "opening": False})


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A saved adapter that changes much."""
    factors = low_rank.init(model.config, jax.random.key(0), 2, ("q", "v"))
    factors = jax.tree.map(lambda x: x + 0.3, factors)
    empty = adapter_lib.empty(model.config.dim)
    primer = jnp.array(model.tokenizer.encode("Read before."), jnp.int32)
    path = tmp_path_factory.mktemp("adapters") / "mine"
    made = {"model": model.fingerprint, "model_name": model.name}
    adapter_lib.save_adapter(path, empty._replace(primer=primer, writer=factors), made)
    return path


def test_each_is_scored_as_it_would_be_alone(model, config, folder, monkeypatch):
    monkeypatch.setattr(run, "load_model", lambda *_: model)
    names = [str(folder), f"{folder}@0.5", f"{folder}@0", "none"]
    said, progress = [], Progress()
    progress.say = said.append
    scores = compare.compare(config, names, progress=progress)
    assert list(scores) == names and len(said) == len(names)
    empty = adapter_lib.empty(model.config.dim)
    bare = validation.of_config(model, config, 0)(validation.Variant(empty, None, False))
    np.testing.assert_allclose(scores["none"]["it"]["kl"], bare["it"]["kl"], rtol=1e-5)
    kl = [scores[name]["it"]["kl"] for name in names]
    assert len(set(kl)) == len(names) and abs(kl[2] - kl[3]) < abs(kl[0] - kl[3])
    table = compare.table(scores)
    assert table.row_count == 1 and [c.header for c in table.columns[1:]] == names
    shown = Console(width=80, file=io.StringIO())
    shown.print(table)
    cells = (f"{s['it']['kl']:.2f}, {number(s['it']['same_right'])}" for s in scores.values())
    assert all(cell in shown.file.getvalue() for cell in cells)


@pytest.mark.parametrize(
    ("name", "error"), [("{}@much", "a number stands after @"), ("none@0.5", "none has no writer")]
)
def test_mistakes_are_named(model, config, folder, monkeypatch, name, error):
    monkeypatch.setattr(run, "load_model", lambda *_: model)
    with pytest.raises(ValueError, match=error):
        compare.compare(config, [name.format(folder)])
