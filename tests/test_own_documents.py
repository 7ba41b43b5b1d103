"""Documents of the machine: collected, asked about, trained on and evaluated, on a tiny model."""

import json

import pytest

from configs import evaluate as evaluate_config
from configs import train as train_config
from kvpacket_jax.data.own import installed_docs
from kvpacket_jax.evaluate import run
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.train import loop
from launch.common import questions
from tests.support import byte_model as byte_model_files

CHAT = "{% for m in messages %}{{ m.content }}|{% endfor %}"
SENTENCE = "The {} of pier {} is open to all of the crew. "
FAST = dict(documents=2, tokens=240, questions=2, row=176, new_tokens=4, answers=8, learning=1)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """The byte model with a chat template, for the questions are asked in chat."""
    folder = byte_model_files.write(tmp_path_factory.mktemp("chat"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT}))
    return folder


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """What launch.collect_docs writes: READMEs of a few packages."""
    folder = tmp_path_factory.mktemp("installed")
    for i in range(24):
        place = folder / f"crane{i}-1.0.dist-info"
        place.mkdir()
        text = "\n\n".join(SENTENCE.format(what, i) for what in ("gate", "yard", "shop", "dock"))
        (place / "METADATA").write_text(f"Name: crane{i}\nVersion: 1.0\n\n{text}")
    pieces = installed_docs.collect([folder], 100, 0, ("description",))
    path = folder / "docs.jsonl"
    path.write_text("".join(f"{json.dumps(p)}\n" for p in pieces))
    return path


@pytest.fixture(scope="module")
def corpus(documents, chat_model, tmp_path_factory):
    """As launch.train makes it of --config.path. A random model's questions are none."""
    path = tmp_path_factory.mktemp("corpus") / "questions.jsonl"
    questions.write(documents, path, str(chat_model), "float32", size=12, lengths=(800,))
    assert len(path.read_text().splitlines()) == len(documents.read_text().splitlines()) > 12
    return path


def test_an_adapter_is_trained_on_what_was_collected(corpus, chat_model, tmp_path):
    config = train_config.get_config("jsonl")
    config.model, config.dtype, config.corpus = str(chat_model), "float32", str(corpus)
    config.primer, config.writer_rank, config.num_steps, config.microbatches = "", 2, 1, 1
    for name in ("lives_5", "notes"):
        config.mixture[name].weight = 0.0
    for entry in (config.mixture.own, config.validation.own):
        entry.update(FAST)
        entry.options.num_documents = 2
    config.validation.own.sets = 1
    loop.train(config, tmp_path / "run")
    assert adapter_lib.load_adapter(tmp_path / "run" / "adapter").writer is not None


def small(name: str, path, chat_model):
    config = evaluate_config.get_config(name)
    config.model, config.dtype, config.dataset.options.path = str(chat_model), "float32", str(path)
    config.methods, config.new_tokens = ("no_recompute",), 4
    config.num_timed = config.runs = 1
    return config


def test_what_was_collected_is_evaluated(corpus, documents, chat_model, tmp_path):
    config = small("corpus", corpus, chat_model)
    config.dataset.options.update(num_documents=2, num_questions=2)
    config.num_samples = 2
    found = run.evaluate(config, tmp_path / "corpus")
    assert [(r["method"], r["num_samples"]) for r in found][1:] == [("no_recompute", 2)]
    asked = tmp_path / "asked.jsonl"
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()[:2]]
    asked.write_text(json.dumps({"documents": texts, "question": "Which gate is open?"}))
    found = run.evaluate(small("jsonl", asked, chat_model), tmp_path / "jsonl")
    assert [r["num_samples"] for r in found] == [1, 1] and found[0]["exact_match"] == 1


def test_documents_without_questions_are_told_from_questions(documents, chat_model, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)question missing.*write_questions"):
        run.prepare_run(small("jsonl", documents, chat_model))
