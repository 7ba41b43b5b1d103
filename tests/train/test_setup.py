"""Settings of a run: what is refused, what training begins with, learning rates."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import models
from configs import card as card_config
from configs import evaluate as evaluate_config
from configs import train as config_lib
from kvpacket_jax import adapters, data
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.runtime import resume
from kvpacket_jax.train import loop, run, setup
from tests.support import byte_train
from tests.support.training import ROOT, adapter, command, options, texts


@pytest.mark.parametrize("field", ["hedder=3", "optimizer.rate=3", "header.x=3"])
def test_a_mistyped_field_is_named_without_a_traceback(byte_model, tmp_path, field):
    changed = [*command(byte_model, tmp_path), f"--config.{field}"]
    done = subprocess.run(changed, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    wrong = field.partition("=")[0].rpartition(".")[2]
    assert re.search(rf"no such field of the config: .*\b{wrong}\b", done.stderr)


def test_shipped_format_loads_and_checks_its_model(byte_model, trained):
    model = models.load(str(byte_model), "float32")
    loaded = adapter_lib.load_adapter(trained / "adapter", model)
    assert loaded.header.dtype == np.float32
    assert any(np.abs(np.asarray(x)).max() > 0 for x in loaded)


def test_one_that_begins_as_shipped_has_the_models_own_adapter():
    config = config_lib.get_config("jsonl")
    setup.check(config)
    assert setup.resolved(config, None).init == "adapter:qwen2.5-coder-0.5b"
    config.model = "smollm2-135m"
    assert setup.resolved(config, None).init == "untrained"


def test_training_begins_with_a_trained_adapter_and_more_tokens(byte_model, trained):
    model, config = models.load(str(byte_model), "float32"), byte_train.get_config("")
    config.init, config.header = f"adapter:{trained / 'adapter'}", 9
    began = setup.initial_adapter(config, model)
    old = adapter(trained)
    assert [len(x) for x in began[:2]] == [9, 8]
    for part in ("header", "trailer"):
        np.testing.assert_array_equal(getattr(began, part)[:8], getattr(old, part))
    assert np.abs(began.header[8]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, began.writer, old.writer)
    assert began.primer is None

    config.writer_rank = 3
    with pytest.raises(ValueError, match="a writer of rank 2 .*; this run trains .* of rank 3"):
        setup.initial_adapter(config, model)
    config.writer_rank, config.writer_matrices = 2, ("q", "k")
    with pytest.raises(ValueError, match="Give writer_rank and writer_matrices as it has them"):
        setup.initial_adapter(config, model)
    config.header, config.writer_matrices = 7, ("q", "k", "v", "o")
    with pytest.raises(ValueError, match=r"header of 8 tokens.*set config.header=8 or more"):
        setup.initial_adapter(config, model)

    config.init, config.header, config.trailer = "text:abc", 2, 3
    began = setup.initial_adapter(config, model)
    ids = model.tokenizer.encode("abc")
    table = np.asarray(model.params["embedding"])
    np.testing.assert_array_equal(np.concatenate(began[:2]), table[np.resize(ids, 5)])


@pytest.fixture
def with_primer(byte_model, tmp_path):
    """The model, and the folder of an adapter with a primer of its own."""
    model = models.load(str(byte_model), "float32")
    primer = adapters.primer(model, "completion", ["Another text."])
    adapter_lib.save_adapter(tmp_path / "it", primer, {"model": model.fingerprint})
    return model, str(tmp_path / "it"), primer.primer


def test_a_run_that_goes_on_has_the_primer_that_it_began_with(byte_model, tmp_path, with_primer):
    _, source, ids = with_primer
    config = byte_train.get_config(str(texts(byte_model)))
    config.update(options(byte_model) | {"init": f"adapter:{source}", "primer": "primer"})

    def prepare(saved):
        return run.prepare(config, tmp_path, saved, None, None, lambda _: None)

    began = prepare(None)
    np.testing.assert_array_equal(began.primer_ids, ids)
    saved = resume.as_json(began.description)
    shutil.rmtree(source)
    went_on = prepare(saved)
    np.testing.assert_array_equal(went_on.primer_ids, ids)
    jax.tree.map(np.testing.assert_array_equal, went_on.primer, began.primer)
    assert resume.as_json(went_on.description) == saved


def test_a_run_that_is_older_than_a_setting_goes_on(byte_model):
    config = byte_train.get_config(str(texts(byte_model)))
    config.update(options(byte_model))
    saved = resume.as_json({"config": config.to_dict()})
    for name in setup.OLDER:
        del saved["config"][name]
    config.opening, config.best_first = False, 0.0
    assert setup.resolved(config, saved) == config
    config.learn_writer = False
    with pytest.raises(ValueError, match="learn_writer True, not False"):
        setup.resolved(config, saved)


def test_a_primer_goes_on_as_it_was_begun(with_primer, tmp_path):
    model, source, ids = with_primer
    config = byte_train.get_config("")
    config.init, config.primer, config.learn_primer = f"adapter:{source}", source, True
    learned = setup.initial_adapter(config, model)
    np.testing.assert_array_equal(learned.primer, model.params["embedding"][ids])
    config.primer = "primer"
    with pytest.raises(ValueError, match=rf"primer of {len(ids)} tokens, this run learns one of"):
        setup.initial_adapter(config, model)
    adapter_lib.save_adapter(tmp_path / "learned", learned, {"model": model.fingerprint})
    config.init, config.learn_primer = f"adapter:{tmp_path / 'learned'}", False
    with pytest.raises(ValueError, match="has a learned primer: set config.learn_primer=True"):
        setup.initial_adapter(config, model)


def test_parts_that_are_named_are_trained_and_the_primer_is_not(byte_model):
    model, config = models.load(str(byte_model), "float32"), byte_train.get_config("")
    config.primer = "primer"
    tokens = setup.initial_adapter(config, model)
    trained, ids = adapter_lib.split_trainable(tokens)
    expected = adapters.primer(model, "completion").primer
    np.testing.assert_array_equal(ids, expected)
    assert trained.primer is None and set(trained.writer) == {"q", "k", "v", "o"}
    config.learn_primer, config.writer_rank, config.header, config.trailer = True, 0, 0, 0
    learned, ids = adapter_lib.split_trainable(setup.initial_adapter(config, model))
    assert ids is None and learned.writer is None and learned.num_tokens == 0
    table = np.asarray(model.params["embedding"])
    np.testing.assert_array_equal(learned.primer, table[np.asarray(expected)])
    config.primer = ""
    with pytest.raises(ValueError, match="set primer, to 'primer' say"):
        setup.check(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("writer_rank", 0, "Nothing would be trained: give header, trailer or distiller_rank a"),
        ("learn_writer", False, "Nothing would be trained: .* writer_rank with learn_writer=True"),
        ("optimizer.clip_norm", -1.0, "optimizer.clip_norm is -1.0: it is 0 or more"),
        ("optimizer.learning_rate", float("nan"), "optimizer.learning_rate is nan: it is 0 or mo"),
        ("header", -1, "header is -1: it is 0 or more"),
        ("finish", -1, "finish is -1: it is 0 or more"),
        ("writer_matrices", ("q", "x"), "writer_matrices names x; there are q, k, v, o"),
        ("init", "ones", "none of 'untrained', 'shipped', 'text:…' and 'adapter:…'"),
        ("init", "text:", "none of 'untrained', 'shipped', 'text:…' and 'adapter:…'"),
        ("init", "adapter:", "none of 'untrained', 'shipped', 'text:…' and 'adapter:…'"),
        ("template", "qwen", "template 'qwen' is not one of completion, chat"),
        (
            "template",
            "chat_reasoning",
            "new_tokens is .*: answers of template 'chat_reasoning' take 97 or more",
        ),
        ("loss", "mse", "loss 'mse' is not one of kl, cross_entropy"),
        ("reduction", "mean", "reduction 'mean' is not one of sum, mean_tokens, mean_questions"),
        ("remat", "maybe", "remat 'maybe' is not one of auto, yes, no"),
        ("validate_every", 0, "validate_every is 0: it is 1 or more"),
        ("microbatches", 0, "microbatches is 0: it is 1 or more"),
        ("validation.needles.sets", 0, "validation.needles.sets is 0: it is 1 or more"),
        ("mixture.needles.answers", 0, "mixture.needles.answers is 0: it is 1 or more"),
        (
            "mixture.needles.row",
            10,
            "mixture.needles.row is 10: it holds a question and its answer",
        ),
        ("wrong_weight", -0.5, "wrong_weight is -0.5: it is 0 or more"),
        ("scales", (), r"scales are \(\): one or more numbers above 0"),
        ("scales", (1.0, 0.0), r"scales are \(1.0, 0.0\): one or more numbers above 0"),
        ("mean_decay", 1.0, "mean_decay is 1.0: it is from 0 to below 1"),
        ("keeps", (), r"keeps are \(\): one or more shares"),
        ("keeps", (0.5, 1.5), r"keeps are \(0.5, 1.5\): one or more shares, above 0 to 1"),
        ("keeps", (1.0, 0.5), "keeps below 1 need a distiller that keeps them"),
        ("distiller_rank", 4, "A distiller learns nothing where all is kept"),
    ],
)
def test_settings_are_refused_before_anything_is_loaded(tmp_path, field, value, message):
    config = config_lib.get_config()
    config.model = "no-such-model"
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("template", "chat_reason", "template 'chat_reason' is not one of completion, chat"),
        ("scan_layers", "true", "scan_layers 'true' is not one of auto, yes, no"),
        ("batch_size", 0, "batch_size is 0: it is 1 or more"),
        ("validation.needles.sets", 0, "validation.needles.sets is 0: it is 1 or more"),
    ],
)
def test_cards_and_validations_refuse_settings_too(field, value, message):
    config = card_config.get_config()
    config.model = "no-such-model"
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        run.load_model(config, None, None)


def test_adapter_of_another_model_is_refused(tiny, trained, tmp_path):
    with pytest.raises(ValueError, match="32 numbers.* That is .*: --model="):
        adapter_lib.load_adapter(trained / "adapter", tiny("tiny_qwen3"))
    with pytest.raises(FileNotFoundError, match="no adapter"):
        adapter_lib.load_adapter(tmp_path / "absent")


def test_an_adapter_of_a_model_as_wide_is_taken_only_when_told(byte_model, trained):
    model = models.load(str(byte_model), "float32")
    other = dataclasses.replace(model, fingerprint="another")
    with pytest.raises(ValueError, match="trained for another model than .*, not another"):
        adapter_lib.load_adapter(trained / "adapter", other)
    adapter_lib.load_adapter(trained / "adapter", other, other_model=True)
    config = byte_train.get_config("")
    config.init = f"adapter:{trained / 'adapter'}"
    with pytest.raises(ValueError, match="--config.other_model"):
        setup.initial_adapter(config, other)
    config.other_model = True
    setup.initial_adapter(config, other)


def test_an_adapter_replaces_an_adapter_and_nothing_else(trained, tmp_path):
    shutil.copytree(trained / "adapter", tmp_path / "old")
    adapter_lib.save_adapter(tmp_path / "old", adapter(trained), {"model": None})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there and is no adapter"):
        adapter_lib.save_adapter(tmp_path / "notes", adapter(trained), {"model": None})
    assert (tmp_path / "notes" / "mine.txt").exists()


def test_a_mixture_without_weight_kinds_or_with_too_many_sizes_is_refused():
    config = config_lib.get_config()
    setup.check(config)
    for entry in config.mixture.values():
        entry.weight = 0.0
    with pytest.raises(ValueError, match="no entry with a positive weight"):
        setup.check(config)
    config = config_lib.get_config()
    config.validation = {}
    with pytest.raises(ValueError, match="validation has no kind"):
        setup.check(config)
    config = config_lib.get_config()
    entry = config.mixture.needles.to_dict()
    for i in range(setup.MAX_SHAPES):
        config.mixture[f"more_{i}"] = entry | {"tokens": 200 + i}
    with pytest.raises(ValueError, match="more than 8: each is a program of its own"):
        setup.check(config)


def test_a_writer_that_stays_is_not_scaled():
    config = config_lib.get_config("distill")
    setup.check(config)
    config.scales = (1.0, 0.6)
    with pytest.raises(ValueError, match=r"scales are of what a writer learned: .* \(1\.0,\)"):
        setup.check(config)


@pytest.mark.parametrize("arg", ["", *config_lib.NAMES])
def test_shipped_configs_pass_the_check(arg):
    config = config_lib.get_config(arg or None)
    setup.check(config)
    if arg != "smoke":  # it has one entry
        assert sum(entry.weight for _, entry in setup.entries(config)) == pytest.approx(1)


def test_rates_warm_up_stay_and_fall_from_where_they_are_told():
    config = config_lib.get_config()
    config.optimizer.update({"learning_rate": 2.0, "writer_learning_rate": 0.5, "warmup_steps": 3})
    config.finish = 4
    found = [setup.rates(config, step) for step in (0, 1, 2, 3, 50, 1000)]
    scale = np.array([1 / 4, 2 / 4, 3 / 4, 1, 1, 1])
    np.testing.assert_allclose([r.tokens for r in found], 2 * scale, 1e-6)
    np.testing.assert_allclose([r.writer for r in found], 0.5 * scale, 1e-6)

    def falling(finish_from, steps):
        left = {step: setup.steps_left(config, step, finish_from) for step in steps}
        return [setup.rates(config, step, left[step]).tokens for step in steps]

    found = falling(10, (10, 11, 12, 13, 14, 15))
    np.testing.assert_allclose(found, 2 * np.array([1, 0.75, 0.5, 0.25, 0, 0]), 1e-6)
    # In the midst of the warm-up: from where the rate is.
    found = falling(1, (1, 2))
    np.testing.assert_allclose(found, 2 * np.array([2 / 4, 3 / 4 * 0.75]), 1e-6)


def test_the_schedule_follows_from_the_seed_and_takes_whole_microbatches():
    config = config_lib.get_config()
    config.batch_size = 4
    train_sets = {name: range(10) for name, _ in setup.entries(config)}
    schedule = setup.schedule(config, train_sets)
    drawn = [schedule[i] for i in range(400)]
    again = setup.schedule(config, train_sets)
    assert drawn[7:20] == [again[i] for i in range(7, 20)]
    assert {first for _, first in drawn} == {0, 4}
    for name, entry in setup.entries(config):
        share = sum(name == n for n, _ in drawn) / len(drawn)
        assert share == pytest.approx(entry.weight, abs=0.03)
    config.seed = 1
    other = setup.schedule(config, train_sets)
    assert drawn[:20] != [other[i] for i in range(20)]


def test_own_documents_are_asked_for_where_there_are_none(tmp_path):
    config = config_lib.get_config("jsonl")
    config.corpus = "mine.jsonl"
    own = config.mixture.own, config.validation.own
    assert [entry.options.path for entry in own] == ["mine.jsonl"] * 2
    for flag, said in (("path=", "--config.path=FILE"), ("path=none.jsonl", "There is no file")):
        changed = [sys.executable, "-m", "launch.train", f"--workdir={tmp_path}"]
        changed += ["--config=configs/train.py:jsonl", f"--config.{flag}"]
        done = subprocess.run(changed, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" not in done.stderr and said in done.stderr


def test_documents_of_any_length_are_trained_on_validated_and_tested(tmp_path):
    file = tmp_path / "questions.jsonl"
    with file.open("w") as lines:
        for i in range(25):
            text = f"{'Word ' * (2000 * (i % 2))}Number{i}."
            asked = [{"text": "Which?", "answers": [f"Number{i}"]}]
            lines.write(json.dumps({"id": f"d{i}", "text": text, "questions": asked}) + "\n")
    config = config_lib.get_config("jsonl")
    config.corpus = str(file)
    trained = setup.sources(config)["own"][0].documents
    validated = setup.validation_sources(config)["own"][0].documents
    test = evaluate_config.get_config("corpus")
    test.dataset.options.path = str(file)
    options = data.options(test.dataset)
    tested = data.load("corpus", "test", **options)[0].documents
    assert not {*trained} & {*validated} and not {*trained, *validated} & {*tested}
    assert len(tested) == 5


def test_a_run_that_was_begun_keeps_its_questions(tmp_path):
    """New ones would make it another run, and it could not go on."""
    lines = [json.dumps({"id": f"d{i}", "text": f"Text {i}."}) for i in range(25)]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    asked = [json.dumps(json.loads(line) | {"questions": []}) + "\n" for line in lines[:-1]]
    (tmp_path / "run" / "questions.jsonl").write_text("".join(asked))
    changed = [sys.executable, "-m", "launch.train", f"--workdir={tmp_path / 'run'}"]
    changed += ["--config=configs/train.py:jsonl", f"--config.path={tmp_path / 'docs.jsonl'}"]
    done = subprocess.run(changed, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "was begun without 'd24': of the documents" in done.stderr
    assert (tmp_path / "run" / "questions.jsonl").read_text() == "".join(asked)
