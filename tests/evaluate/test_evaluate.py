"""The harness: answers and KL against identities, a run that is stopped and goes on."""

import dataclasses
import functools
import json
import re
import shutil
import types

import numpy as np
import pytest
import scipy.special

from configs import evaluate as configs
from kvpacket_jax.data import EncodedExample, Example, Question, Template
from kvpacket_jax.evaluate import compare, rows, run
from kvpacket_jax.evaluate.answers import answer, reference
from kvpacket_jax.measure.request import Entry, first_token
from kvpacket_jax.methods import METHODS, Method, Request, settings
from kvpacket_jax.packets.buckets import COARSE, Buckets
from kvpacket_jax.packets.generate import generate
from kvpacket_jax.packets.prefill import prefill
from kvpacket_jax.runtime import sealed
from kvpacket_jax.teacher import teach
from tests.support.golden import load_case

TEMPLATE = Template(
    chat=False,
    opening="",
    document="{text}",
    wording={"question": "{text}"},
    reply={"question": ""},
    stop={"question": (" 0 ",)},
)


def decode(ids) -> str:
    return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def case(tiny):
    model = tiny("tiny_qwen2")
    words = types.SimpleNamespace(decode=decode, stop_ids=(), fingerprint="words")
    return load_case("qwen2_A", dataclasses.replace(model, tokenizer=words))


def entry(case, name: str) -> Entry:
    method = METHODS[name]()
    return Entry(method, method.store(case.model, case.preamble, case.documents))


QUESTIONS = (Question("first", ("1",)), Question("second", ("2",)))
NEW = 8


@pytest.fixture(scope="module")
def targets(case):
    encoded = EncodedExample(case.preamble, case.documents, [case.query, case.query[2:]])
    return teach(case.model, encoded, NEW)


def ask(case, targets, entry: Entry):
    return answer(case.model, entry, targets, QUESTIONS, TEMPLATE, NEW)


def test_shared_answers_equal_those_of_single_requests(case, targets):
    full = entry(case, "full_recompute")
    expected = reference(case.model, targets, QUESTIONS, TEMPLATE)
    for query, found, known in zip(
        targets.example.questions, ask(case, targets, full), expected, strict=True
    ):
        assert found.same and found.text == known.text
        np.testing.assert_allclose(found.kl, 0, atol=1e-5)
        alone = Request(case.preamble, case.documents, query)
        prepared = full.method.prepare(case.model, full.stored, alone, new_tokens=NEW)
        ids = generate(case.model, prepared.context, prepared.prefilled, NEW)[0]
        assert found.text == decode(ids)


@pytest.mark.parametrize(
    "name", ["no_recompute", "epic", "cache_blend", "rand_recompute", "single_cache", "sink"]
)
def test_questions_asked_alone_get_the_answers_they_get_together(case, targets, name):
    alone = type("Alone", (METHODS[name],), {"shared_context": lambda *_: None})
    together = entry(case, name)
    found = [ask(case, targets, e) for e in (together, together._replace(method=alone()))]
    for a, b in zip(*found, strict=True):
        assert a.text == b.text and a.same == b.same
        np.testing.assert_allclose(a.kl, b.kl, rtol=1e-3, atol=1e-5)


def test_an_answer_that_differs_is_what_the_method_decodes(case, targets):
    """Only those are decoded: the same ones are told by one pass over the reference's."""
    bare = entry(case, "no_recompute")
    answers = ask(case, targets, bare)
    assert not all(a.same for a in answers)
    context, start = bare.method.shared_context(
        case.model, bare.stored, Request(case.preamble, case.documents, case.query)
    )[:2]
    for query, found in zip(targets.example.questions, answers, strict=True):
        ready = prefill(case.model, context, [query], start, NEW)
        ids = generate(case.model, context, ready, NEW)[0]
        assert TEMPLATE.answer(QUESTIONS[0], decode(ids)) == found.text


def test_kl_is_that_of_the_next_token_after_the_same_text(case, targets):
    bare, full = entry(case, "no_recompute"), entry(case, "full_recompute")
    found = ask(case, targets, bare)[0]
    tokens = targets.answers[0]
    assert len(found.kl) == len(tokens)
    for at in (0, 3):
        query = [*case.query, *tokens[:at]]
        alone = Request(case.preamble, case.documents, query)
        logits = (np.asarray(first_token(case.model, e, alone).logits[0]) for e in (full, bare))
        p, q = (scipy.special.log_softmax(x.astype(np.float64)) for x in logits)
        assert found.kl[at] == pytest.approx(float((np.exp(p) * (p - q)).sum()), rel=1e-3)


def test_compare_gives_a_row_for_every_method_and_question(case, targets, monkeypatch):
    monkeypatch.setattr(compare, "encode_example", lambda *_: targets.example)
    texts = Example("tiny", ("",) * len(case.documents), QUESTIONS)
    methods = {name: METHODS[name]() for name in ("full_recompute", "no_recompute", "epic")}
    comparison = compare.compare(case.model, methods, [texts], TEMPLATE, new_tokens=4, runs=1)
    assert [cost.method for cost in comparison.costs] == list(methods)
    assert [(r["method"], r["question"]) for r in comparison.rows()] == [
        (m, q.text) for m in methods for q in QUESTIONS
    ]
    for row in comparison.rows():
        assert row["ttft_s"] > 0 and row["load_s"] == 0 and row["prefill_s"] > 0
        assert (row["kl"] == 0) == (row["method"] == "full_recompute")


# ---- a run


@pytest.fixture(scope="module")
def config(byte_model):
    config = configs.get_config("biography_64")
    config.model, config.dtype, config.template = str(byte_model), "float32", "completion"
    config.dataset.options.update(num_documents=2, num_questions=2, num_test=8)
    config.methods, config.num_samples, config.new_tokens = ("no_recompute", "no_cache"), 7, 4
    config.num_timed = config.runs = 1
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evaluation")
    return workdir, run.evaluate(config, workdir)


MEASURED = (
    *("ttft_s", "ttft_quartiles_s", "compose_s", "prefill_s", "ttft_runs"),
    *("to_full", "floor_s", "to_floor", "machine", "date"),
)


def comparable(results: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in MEASURED} for r in results]


def test_a_run_leaves_its_summary(finished):
    workdir, results = finished
    assert sealed.read_json(workdir / "results.json", "", list) == results
    assert [r["method"] for r in results] == ["full_recompute", "no_recompute", "no_cache"]
    for r in results:
        assert r["num_samples"] == 7 and r["num_sets"] == 4
        assert r["f1_low"] <= r["f1"] <= r["f1_high"] and r["ttft_s"] > 0
        assert r["flops_total"] > 0 and r["xla_flops"] > 0 and r["exact_match"] is not None
        assert r["least_bytes"] > r["cache_bytes"] and r["to_floor"] > 0 and r["tier"] == "device"
        assert (r["cached_tokens"] > 0) == (r["cache_bytes"] > 0)
    full, bare, none = (r["cached_tokens"] for r in results)
    assert bare > full == none  # these two keep the preamble alone
    assert results[0]["kl"] == 0 and results[0]["agree"] == 1
    assert results[1]["kl"] > 0 and results[2]["flops_overhead"] == 0


def test_a_mesh_gives_the_same_answers(config, finished, tmp_path):
    _, results = finished
    with config.unlocked():
        fewer = config.copy_and_resolve_references()
    fewer.methods = ("no_recompute",)
    for found, expected in zip(
        run.evaluate(fewer, tmp_path, mesh="model:2"), results[:2], strict=True
    ):
        assert found["method"] == expected["method"] and found["f1"] == expected["f1"]
        assert found["agree"] == expected["agree"]
        assert found["kl_answer"] == pytest.approx(expected["kl_answer"], abs=1e-4)


def test_a_run_cut_short_goes_on_to_the_same_summary(config, finished, tmp_path):
    whole, results = finished
    lines = (whole / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run.json").write_bytes((whole / "run.json").read_bytes())
    (tmp_path / "rows.jsonl").write_text("".join(lines[:5]) + lines[5][:40])
    assert comparable(run.evaluate(config, tmp_path)) == comparable(results)
    cut = lines[5][:40] + "\n"  # stays: nothing that was written is ever removed
    assert sorted((tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)) == sorted(
        [*lines, cut]
    )


def test_a_method_is_added_and_what_is_there_stays(config, finished, tmp_path):
    whole, results = finished
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join([*lines, lines[-1]]))  # by two processes at once
    one = config.copy_and_resolve_references()
    one.methods = ("epic",)
    found = run.evaluate(one, tmp_path)
    assert [r["method"] for r in found] == ["full_recompute", "epic", "no_recompute", "no_cache"]
    kept = [r for r in comparable(found) if r["method"] != "epic"]
    for new, old in zip(kept, comparable(results), strict=True):
        assert {k: new[k] for k in old if "f1" not in k} == {
            k: v for k, v in old.items() if "f1" not in k
        }
    assert {r["num_samples"] for r in found} == {7}


def test_packets_are_built_once_for_all_methods_and_orders(config, tmp_path, monkeypatch):
    one = config.copy_and_resolve_references()
    one.methods, one.num_samples = ("no_recompute", "epic", "single_cache", "no_cache"), 12
    one.dataset.best_first, one.dataset.options.num_questions = True, 6
    built = []
    for cls in (Method, METHODS["single_cache"], METHODS["no_cache"]):

        def spy(self, model, preamble, orders, original=cls.build_orders):
            built.append((type(self).__name__, self.buckets, len(orders)))
            return original(self, model, preamble, orders)

        monkeypatch.setattr(cls, "build_orders", spy)
    shared = run.evaluate(one, tmp_path / "shared")
    to_answer = [(name, orders) for name, buckets, orders in built if buckets == COARSE]
    two_orders = [("NoRecompute", 2), ("SingleCache", 2), ("NoCache", 2)]
    assert to_answer == 2 * two_orders  # of both sets of documents
    to_time = sorted(name for name, buckets, _ in built if buckets == Buckets())
    assert to_time == ["Epic", "NoCache", "NoRecompute", "SingleCache"]
    # Stopped in the midst of a set, it goes on with the same packets.
    path = tmp_path / "shared" / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    built.clear()
    assert comparable(run.evaluate(one, tmp_path / "shared")) == comparable(shared)
    assert built == [("NoCache", COARSE, 2)]
    monkeypatch.setattr(Method, "recipe", property(id))
    monkeypatch.setattr(run, "ORDERS", 1)
    built.clear()
    alone = run.evaluate(one, tmp_path / "alone")
    assert [orders for _, buckets, orders in built if buckets == COARSE] == [1] * 2 * 2 * 4
    assert comparable(shared) == comparable(alone)


def test_an_example_that_is_too_long_is_named_before_anything_is_answered(config, tmp_path):
    path = tmp_path / "mine.jsonl"
    long = {"documents": ["x" * 5000], "question": "Which?", "answers": ["x"], "id": "the-long-one"}
    short = long | {"documents": ["x"], "id": "short"}
    path.write_text(f"{json.dumps(short)}\n{json.dumps(long)}\n")
    other = config.copy_and_resolve_references()
    other.num_samples, other.dataset = 0, {"name": "jsonl", "split": "test", "options": {}}
    with other.unlocked():
        other.dataset.options.path = str(path)
    with pytest.raises(ValueError, match="Example the-long-one: .* spans .* positions"):
        run.prepare_run(other)


@pytest.mark.parametrize(
    "name", ["a3", "cache_blend", "epic", "infoflow", "infoflow:reorder=true", "sam_kv"]
)
def test_methods_that_choose_say_how_much_of_the_needed_documents_they_picked(case, targets, name):
    _, method = settings.make(name)
    chosen = Entry(method, method.store(case.model, case.preamble, case.documents))
    every = tuple(range(len(case.documents)))
    gold = [
        dataclasses.replace(q, info={"documents": list(d)})
        for q, d in zip(QUESTIONS, (every, every[:1]), strict=True)
    ]
    both, first = answer(case.model, chosen, targets, gold, TEMPLATE, NEW)
    whole = name == "sam_kv"  # keeps documents as short as these whole
    assert 0 < both.picked.gold_tokens == both.picked.picked_tokens <= 1
    assert (both.picked.picked_tokens == 1) == whole
    # Of one of these three documents InfoFlow picks no token.
    touched = len(every) - name.startswith("infoflow")
    assert both.picked.gold_documents == pytest.approx(touched / len(every))
    assert 0 <= first.picked.gold_tokens <= 1
    example = Example("e", ("",) * len(every), tuple(gold))
    (row, _) = rows.answer_rows(name, example, [both, first], [both, first])
    assert row["gold_tokens"] == both.picked.gold_tokens


def test_a_workdir_of_another_run_is_refused_and_kept(config, finished):
    workdir, _ = finished
    before = (workdir / "rows.jsonl").read_bytes()
    with config.unlocked():
        other = config.copy_and_resolve_references()
    other.seed = 1
    with pytest.raises(ValueError, match="another run: seed 0, not 1"):
        run.evaluate(other, workdir)
    assert (workdir / "rows.jsonl").read_bytes() == before


def test_answers_of_an_earlier_version_are_refused_and_kept(config, finished, tmp_path):
    whole, _ = finished
    for name in ("rows.jsonl", "run.json"):
        text = (whole / name).read_text()
        (tmp_path / name).write_text(re.sub(r',\s*"sha256": "\w+"', "", text))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        ValueError, match=r"run\.json is damaged: it has no sha256.*earlier version"
    ):
        run.evaluate(config, tmp_path)
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_goes_on_where_its_questions_lie_elsewhere(tmp_path):
    def identity(path, **others):
        options = {"path": path, "num_documents": 5}
        return {"dataset": {"name": "corpus", "options": options}, "examples": "ab" * 32} | others

    for path in ("/here/mine.jsonl", "there/yours.jsonl", "."):
        rows.claim(tmp_path, identity(path))
        stored = json.loads((tmp_path / "run.json").read_text())
        assert stored["dataset"]["options"]["path"] == path
    with pytest.raises(ValueError, match="different examples"):
        rows.claim(tmp_path, identity("/here/mine.jsonl", examples="cd" * 32))
    fewer = identity("/here/mine.jsonl")
    fewer["dataset"]["options"]["num_documents"] = 2
    with pytest.raises(ValueError, match=r"dataset.options.num_documents 5, not 2"):
        rows.claim(tmp_path, fewer)


def test_other_questions_under_the_same_settings_are_another_run(config, tmp_path):
    path = tmp_path / "mine.jsonl"
    other = config.copy_and_resolve_references()
    other.num_samples, other.dataset = 0, {"name": "jsonl", "split": "test", "options": {}}
    with other.unlocked():
        other.dataset.options.path = str(path)
    claimed = []
    for color in ("red", "blue"):
        record = {"documents": ["It is red."], "question": "What is it?", "answers": [color]}
        path.write_text(json.dumps(record))
        claimed.append(run.prepare_run(other).identity)
    rows.claim(tmp_path / "run", claimed[0])
    with pytest.raises(ValueError, match="another run: different examples"):
        rows.claim(tmp_path / "run", claimed[1])


def test_examples_are_timed_again_where_more_are_asked_for(config, finished, tmp_path):
    whole, _ = finished
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    kept = (tmp_path / "timings.json").read_bytes()
    run.evaluate(config, tmp_path)
    assert (tmp_path / "timings.json").read_bytes() == kept
    more = config.copy_and_resolve_references()
    more.runs = 2
    results = run.evaluate(more, tmp_path)
    assert all(len(times) == 2 for r in results for times in r["ttft_runs"])


def test_an_adapter_may_come_later_but_not_another_one(tmp_path):
    claim = functools.partial(rows.claim, tmp_path)
    claim({"seed": 0, "adapter": "none"})
    claim({"seed": 0, "adapter": "one"})
    claim({"seed": 0, "adapter": "none"})  # the other methods alone, again
    with pytest.raises(ValueError, match="adapter one, not two"):
        claim({"seed": 0, "adapter": "two"})
    with pytest.raises(ValueError, match="seed 0, not 1"):
        claim({"seed": 1, "adapter": "none"})
    claim({"seed": 0, "adapter": "one"})


def test_bad_settings_are_refused_before_the_model_is_loaded(config):
    for field, value, message in (
        ("methods", ("kv_paket",), "no method 'kv_paket'"),
        ("template", "chatty", "not one of completion, chat"),
        ("num_samples", 99, "16 questions, num_samples asks for 99"),
        ("num_samples", -1, "num_samples is -1: it is 0, for all, or more"),
        ("new_tokens", 0, "new_tokens is 0: answers have 1 or more"),
        ("methods", ("kv_packet",), "kv_packet needs an adapter"),
        ("methods", ("no_cache,epic:tokens=2,kv_packet",), "kv_packet needs an adapter"),
        ("num_timed", 0, "num_timed is 0 and runs 1: .* at least one example"),
    ):
        other = config.copy_and_resolve_references()
        setattr(other, field, value)
        other.adapter = "none"
        with pytest.raises(ValueError, match=message):
            run.prepare_run(other)
