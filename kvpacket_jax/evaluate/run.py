"""The one harness: every method answers, is scored, counted and timed in the same way.

Methods know nothing of it. `evaluate` is a run over a data set, resumed where it stopped; `compare`
is the demo's, over one example.
"""

import contextlib
import dataclasses
import datetime
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

import models
from kvpacket_jax import data, teacher
from kvpacket_jax.data import EncodedExample, Example, Template, encode_example
from kvpacket_jax.evaluate import metrics, summary
from kvpacket_jax.evaluate.answers import Answer, answer, reference
from kvpacket_jax.measure.cost import Entry, cost, time_methods
from kvpacket_jax.measure.flops import tree_bytes
from kvpacket_jax.measure.machine import measure_machine
from kvpacket_jax.methods import Method, Request
from kvpacket_jax.methods.settings import listed, make
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.packet import Packet
from kvpacket_jax.runtime import programs
from models import LanguageModel, sharding
from models.files import write_whole
from models.identity import digest

Step = Callable[[str], contextlib.AbstractContextManager]


class Run(NamedTuple):
    """What a run needs, loaded and checked."""

    model: LanguageModel
    template: Template
    methods: dict[str, Method]  # by "name" or "name:setting"
    examples: list[tuple[Example, EncodedExample]]
    identity: dict  # all that its answers depend on


def evaluate(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    cache_dir: str | None = None,
    mesh: str | None = None,
    step: Step = contextlib.nullcontext,
    track: Callable = lambda items, text: items,
) -> list[dict]:
    """Runs every method of `config` on its data set; killed and called again, it goes on.

    Answers are written to `workdir`/rows.jsonl as they come, times and FLOPs of
    `config.num_timed` examples to timings.json, the summary of both to results.json.

    Args:
      config: configs/evaluate.py says what each field is.
      mesh: as models.load takes it.
      step: called with what is about to be done, for progress; its context is entered around it.
      track: wraps the examples, with a text, for progress.

    Returns:
      The summary: `summary.aggregate`'s dicts with `timings`' beside them.

    Raises:
      ValueError: unknown names, no adapter for kv_packet, or a workdir of other settings.
    """
    workdir = pathlib.Path(workdir)
    rows = _Rows(workdir / "rows.jsonl")
    with step(f"Loading {config.model} and {config.dataset.name}"):
        run = prepare_run(config, cache_dir, mesh, rows.labels)
    workdir.mkdir(parents=True, exist_ok=True)
    _claim(workdir, run.identity)
    folder = pathlib.Path(config.teacher or workdir / "teacher").expanduser()
    for example, encoded in track(run.examples, "answering"):
        _answer_example(run, example, encoded, config.new_tokens, folder, rows)
        programs.make_room()
    timed = _timings(run, config, workdir / "timings.json", step)
    summaries = {spec_of(s): s for s in summary.aggregate(rows.all, config.seed)}
    about = {"machine": timed["machine"], "date": timed["date"], "model": config.model}
    results = [summaries[label] | timed["methods"][label] | about for label in run.methods]
    write_whole(workdir / "results.json", json.dumps(results, indent=1) + "\n")
    return results


def prepare_run(
    config: ConfigDict,
    cache_dir: str | None = None,
    mesh: str | None = None,
    begun: Sequence[str] = (),
) -> Run:
    """Loads and checks all that a run needs; nothing is computed yet.

    Args:
      begun: methods besides the config's; those that the workdir has answers of.
    """
    if config.template not in data.TEMPLATES:
        known = ", ".join(data.TEMPLATES)
        raise ValueError(f"template {config.template!r} is not one of {known}.")
    if min(config.num_timed, config.runs) < 1:
        raise ValueError(
            f"num_timed is {config.num_timed} and runs {config.runs}: results.json has FLOPs and "
            "seconds, for which at least one example must be timed once."
        )
    examples = _first_questions(
        data.load(config.dataset.name, config.dataset.split, **data.options(config.dataset)),
        config.num_samples,
    )
    specs = list(dict.fromkeys([summary.REFERENCE, *listed(config.methods), *begun]))
    for spec in specs:  # before the model is loaded
        make(spec)
    model = models.load_text_model(config.model, config.dtype, cache_dir, mesh)
    sharding.log_layout(model.config, model.params)
    name = adapter_lib.name_for(config.model, config.adapter)
    wrapper = adapter_lib.load_adapter(name, model, config.other_model) if name else None
    if wrapper is None and any(s.split(":")[0] == "kv_packet" for s in specs):
        raise ValueError(
            f"kv_packet needs an adapter, and there is none for {config.model}: give "
            "--config.adapter=DIR of a trained one, or leave kv_packet out of --config.methods."
        )
    methods = dict(make(spec, wrapper) for spec in specs)
    wrapped = any(getattr(m, "adapter", None) is not None for m in methods.values())
    template = data.TEMPLATES[config.template]
    soft_tokens = wrapper.num_tokens if wrapped else 0
    asked = [
        (example, teacher.encode(model, template, example, soft_tokens, config.new_tokens))
        for example in examples
    ]
    identity = {
        "model": model.fingerprint,
        "dtype": str(model.dtype),
        "tokenizer": digest([model.tokenizer.fingerprint, *model.tokenizer.stop_ids]),
        "adapter": adapter_lib.fingerprint(wrapper if wrapped else None),
        "template": digest(dataclasses.asdict(data.TEMPLATES[config.template])),
        "dataset": config.dataset.to_dict(),
        "examples": digest([dataclasses.asdict(e) for e in examples]),
        "num_samples": config.num_samples,
        "new_tokens": config.new_tokens,
        "seed": config.seed,
    }
    return Run(model, template, methods, asked, identity)


def _first_questions(source: Sequence[Example], count: int) -> list[Example]:
    if count == 0:
        return list(source)
    examples, left = [], count
    for example in source:
        if left <= 0:
            break
        asked = example.questions[:left]
        examples.append(dataclasses.replace(example, questions=asked))
        left -= len(asked)
    if left > 0:
        raise ValueError(
            f"The data set has {count - left} questions, num_samples asks for {count}: lower it, "
            "or make the set larger (dataset.options.num_test for generated ones)."
        )
    return examples


def _claim(workdir: pathlib.Path, identity: dict) -> None:
    """Refuses a workdir whose rows came from other settings; methods may be added.

    The adapter is that of the rows of methods with one, once there are any.
    """
    path = workdir / "run.json"
    identity = json.loads(json.dumps(identity))
    old = json.loads(path.read_text()) if path.exists() else identity
    if "none" in (old.get("adapter"), identity["adapter"]):
        adapters = {old.get("adapter"), identity["adapter"]} - {"none"}
        identity["adapter"] = old["adapter"] = adapters.pop() if adapters else "none"
    if old == identity:
        write_whole(path, json.dumps(identity, indent=1) + "\n")
    else:
        differ = [k for k in identity if old.get(k) != identity[k]]
        raise ValueError(
            f"{workdir} holds answers of another run; {', '.join(differ)} differ: "
            f"{ {k: old.get(k) for k in differ} }, not { {k: identity[k] for k in differ} }. "
            "Choose another --workdir."
        )


class _Rows:
    """rows.jsonl; a line cut short by a kill, and what it belonged to, is done again.

    A line that two processes wrote, both at work in the folder, counts once.
    """

    def __init__(self, path: pathlib.Path):
        self._path, self.all, self.done, kept = path, [], set(), ""
        found = path.read_text() if path.exists() else ""
        for line in found.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows = json.loads(line)
                answered = {(r["example"], spec_of(r)) for r in rows}
                if not answered & self.done:
                    self.all += rows
                    self.done |= answered
                    kept += line + "\n"
        if kept != found:
            write_whole(path, kept)

    @property
    def labels(self) -> list[str]:
        """Methods that have answers here."""
        return list(dict.fromkeys(spec_of(r) for r in self.all))

    def write(self, rows: list[dict]) -> None:
        # One line: all rows of a method and an example, or none.
        with self._path.open("a") as file:
            file.write(json.dumps(rows) + "\n")
        self.all += rows


def spec_of(row: dict) -> str:
    """A row's method with its setting, as `config.methods` spells it."""
    return ":".join(filter(None, (row["method"], row["setting"])))


def _answer_example(
    run: Run,
    example: Example,
    encoded: EncodedExample,
    new_tokens: int,
    folder: pathlib.Path,
    rows: _Rows,
) -> None:
    missing = [label for label in run.methods if (example.id, label) not in rows.done]
    if not missing:
        return
    model, template = run.model, run.template
    targets = teacher.targets(model, encoded, new_tokens, folder)
    for label in missing:
        if label == summary.REFERENCE:
            answers = reference(model, targets, example.questions, template)
        else:
            entry = _stored(run, label, encoded, example.id)
            answers = answer(model, entry, targets, example.questions, template, new_tokens)
        rows.write(_rows(label, example, answers))


def _stored(run: Run, label: str, encoded: EncodedExample, example_id: str) -> Entry:
    method = run.methods[label]
    if hasattr(method, "seed"):  # what is drawn differs between examples
        method = dataclasses.replace(method, seed=int(digest([method.seed, example_id])[:8], 16))
    return Entry(method, method.store(run.model, encoded.preamble, encoded.documents))


def _rows(label: str, example: Example, answers: list[Answer]) -> list[dict]:
    method, _, setting = label.partition(":")
    return [
        {
            "example": example.id,
            "question": i,
            "method": method,
            "setting": setting,
            "form": question.form,
            "kind": question.info.get("kind", ""),
            "asked": question.text,
            "answer": found.text,
            "expected": list(question.answers),
            "f1": metrics.f1(found.text, question.answers),
            "exact_match": metrics.exact_match(found.text, question.answers),
            "same": found.same,
            "kl": float(found.kl[0]),
            "kl_answer": float(found.kl.sum()),
            "answer_tokens": len(found.kl),
        }
        for i, (question, found) in enumerate(zip(example.questions, answers, strict=True))
    ]


def _timings(run: Run, config: ConfigDict, path: pathlib.Path, step: Step) -> dict:
    """FLOPs, bytes and seconds of requests alone, on the first question of each timed example."""
    devices = run.model.num_devices
    asked = {"num_timed": config.num_timed, "runs": config.runs, "devices": devices}
    if path.exists():
        timed = json.loads(path.read_text())
        if timed.get("asked") == asked and set(run.methods) <= set(timed["methods"]):
            return timed
    with step("Measuring this machine"):
        machine = measure_machine(run.model.dtype, devices)
    found: dict[str, list[dict]] = {label: [] for label in run.methods}
    examples = run.examples[: config.num_timed]
    for i, (example, encoded) in enumerate(examples):
        with step(f"Timing and counting all methods, example {i + 1} of {len(examples)}"):
            entries = {label: _stored(run, label, encoded, example.id) for label in run.methods}
            request = Request(encoded.preamble, encoded.documents, encoded.questions[0])
            times = time_methods(run.model, entries, request, config.runs)
            for label, entry in entries.items():
                found[label].append(_costs(run, entry, request) | times[label]._asdict())
    timed = {
        "date": datetime.date.today().isoformat(),
        "asked": asked,
        "machine": dataclasses.asdict(machine),
        "methods": {label: _typical(measured) for label, measured in found.items()},
    }
    write_whole(path, json.dumps(timed, indent=1) + "\n")
    return timed


def _costs(run: Run, entry: Entry, request: Request) -> dict:
    found = cost(run.model, entry, request)._asdict()
    packets = jax.tree.leaves(entry.stored, is_leaf=lambda x: isinstance(x, Packet))
    cached = sum(x.length for x in packets if isinstance(x, Packet))
    return found | {"cache_bytes": tree_bytes(entry.stored), "cached_tokens": cached}


def _typical(measured: list[dict]) -> dict:
    """Medians of seconds, means of what is counted (None where one is unknown)."""
    typical = {}
    for key in measured[0]:
        values = [m[key] for m in measured]
        if key == "runs":
            typical["ttft_runs"] = [list(v) for v in values]
        elif None in values:
            typical[key] = None
        else:
            typical[key] = float(np.median(values) if key.endswith("_s") else np.mean(values))
    return typical


# ---- one example, for the demo


class Row(NamedTuple):
    """One method's answer to one question; times and costs are those of the first question."""

    method: str
    question: str
    answer: str
    expected: str
    right: bool  # a right answer is in it, word for word
    ttft_s: float
    load_s: float
    compose_s: float
    prefill_s: float
    flops_total: int
    flops_overhead: int
    flops_matmul: int
    xla_flops: float | None
    kl: float  # of the first token's distribution, against full_recompute's


def compare(
    model: LanguageModel,
    methods: dict[str, Method],
    example: Example,
    template: Template,
    new_tokens: int = 32,
    runs: int = 3,
    step: Step = contextlib.nullcontext,
) -> list[Row]:
    """Asks every method all questions of an example, and costs and times it on the first one.

    Args:
      methods: by the label of their rows; full_recompute must be among them.
    """
    encoded = encode_example(model.tokenizer, template, example)
    request = Request(encoded.preamble, encoded.documents, encoded.questions[0])
    with step(f"{summary.REFERENCE}: answering {len(encoded.questions)} questions"):
        targets = teacher.teach(model, encoded, new_tokens)
    entries, answers = {}, {}
    for name, method in methods.items():
        with step(f"{name}: caching {len(encoded.documents)} documents"):
            stored = method.store(model, encoded.preamble, encoded.documents)
            entries[name] = Entry(method, jax.block_until_ready(stored))
        if name == summary.REFERENCE:
            answers[name] = reference(model, targets, example.questions, template)
            continue
        with step(f"{name}: answering {len(encoded.questions)} questions"):
            answers[name] = answer(
                model, entries[name], targets, example.questions, template, new_tokens
            )
    with step("counting FLOPs"):
        costs = {name: cost(model, entry, request) for name, entry in entries.items()}
    with step(f"timing all methods, {runs} interleaved runs after a warm-up"):
        timings = time_methods(model, entries, request, runs)
    rows = []
    for name in methods:
        for question, found in zip(example.questions, answers[name], strict=True):
            right = metrics.contains(found.text, question.answers)
            parts = (*timings[name][:4], *costs[name], float(found.kl[0]))
            rows.append(Row(name, question.text, found.text, question.answers[0], right, *parts))
    return rows
