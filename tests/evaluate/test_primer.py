"""primed with another primer: documents of a training split, by their number."""

import numpy as np
import pytest

from configs import evaluate as configs
from kvpacket_jax import adapters, data
from kvpacket_jax.evaluate import run


@pytest.fixture
def config(byte_model):
    config = configs.get_config("biography_64")
    config.model, config.dtype, config.template = str(byte_model), "float32", "completion"
    config.dataset.options.update(num_documents=2, num_questions=2, num_test=2)
    config.methods, config.num_samples = ("primed", "no_recompute"), 2
    return config


def test_primed_has_the_primer_that_is_asked_for(config, monkeypatch):
    few = data.load("biography", "train", num_train=3, num_documents=2)
    load = data.load
    monkeypatch.setattr(
        data, "load", lambda name, split, **o: few if split == "train" else load(name, split, **o)
    )
    prepared = {}
    for primer in ("", "biography:1", "biography:3"):
        config.primer = primer
        prepared[primer] = run.prepare_run(config)
    assert len({p.identity["primer"] for p in prepared.values()}) == 3
    texts = [*few[0].documents, *few[1].documents]
    for number in (1, 3):
        found = prepared[f"biography:{number}"]
        expected = adapters.primer(found.model, "completion", texts[:number])
        np.testing.assert_array_equal(found.methods["primed"].adapter.primer, expected.primer)
        assert found.methods["no_recompute"].adapter is None


@pytest.mark.parametrize(
    ("primer", "error"),
    [
        ("biography", "primer 'biography' is not a data set and a number"),
        ("biography:0", "primer 'biography:0' is not a data set and a number"),
        ("own_docs:3", "own_docs has no split 'train'"),
        ("nothing:3", "no data set 'nothing'"),
        ("jsonl:1", "the questions are about one of these documents"),
    ],
)
def test_what_is_no_primer_is_refused_before_a_model_is_loaded(config, tmp_path, primer, error):
    config.primer, config.model = primer, "absent"
    if primer == "jsonl:1":  # every split is the same file
        path = tmp_path / "mine.jsonl"
        path.write_text('{"documents": ["It is red."], "question": "What is it?"}\n')
        config.num_samples, config.dataset = 0, {"name": "jsonl", "split": "test", "options": {}}
        with config.unlocked():
            config.dataset.options.path = str(path)
    with pytest.raises(ValueError, match=error):
        run.prepare_run(config)


def test_a_primer_without_primed_is_refused(config):
    config.primer, config.methods, config.model = "biography:1", ("no_recompute",), "absent"
    with pytest.raises(ValueError, match="is of primed, which --config.methods does not name"):
        run.prepare_run(config)
