"""A run over a data set: every method answers and is scored, counted and timed in the same way.

Methods know nothing of it. Stopped, it goes on where it was.
"""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

import models
from kvpacket_jax import adapters, data, teacher
from kvpacket_jax.data import EncodedExample, Example, Template
from kvpacket_jax.data.order import best_first
from kvpacket_jax.evaluate import metrics, summary
from kvpacket_jax.evaluate.answers import answer, reference
from kvpacket_jax.evaluate.rows import RowFile, answer_rows, claim, spec_of
from kvpacket_jax.evaluate.timings import timings
from kvpacket_jax.measure.request import Entry
from kvpacket_jax.methods import METHODS, VERSION, Method, Request
from kvpacket_jax.methods.settings import listed, make
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import COARSE
from kvpacket_jax.packets.packet import check_document, check_kept
from kvpacket_jax.runtime import programs, resume, sealed
from kvpacket_jax.runtime.progress import SILENT, Progress
from models import LanguageModel, sharding
from models.disk.files import write_whole
from models.identity import digest

Pair = tuple[Example, EncodedExample]
ORDERS = 16  # examples about the same documents that are answered together, at most


class Run(NamedTuple):
    """What a run needs, loaded and checked."""

    model: LanguageModel
    template: Template
    dataset: str
    methods: dict[str, Method]  # by spec: "name" or "name:setting"
    examples: list[Pair]
    identity: dict  # all that its answers depend on


def evaluate(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    cache_dir: str | None = None,
    mesh: str | None = None,
    progress: Progress = SILENT,
) -> list[dict]:
    """Runs every method of `config` on its data set; killed and called again, it goes on.

    Answers are written to `workdir`/rows.jsonl as they come, times and FLOPs of
    `config.num_timed` examples to timings.json, the summary of both to results.json.

    Args:
      config: configs/evaluate.py says what each field is.
      mesh: as models.load takes it.

    Returns:
      The summary: `summary.aggregate`'s dicts, each with `timings.typical`'s fields beside it.

    Raises:
      ValueError: unknown names, no adapter for kv_packet, or a workdir of other settings.
    """
    workdir = pathlib.Path(workdir)
    file = RowFile(workdir / "rows.jsonl")
    with progress.step(f"Loading {config.model} and {config.dataset.name}"):
        run = prepare_run(config, cache_dir, mesh, file.specs)
    workdir.mkdir(parents=True, exist_ok=True)
    claim(workdir, run.identity)
    if file.num_damaged:
        progress.say(
            f"{workdir / 'rows.jsonl'} has {file.num_damaged} lines that are cut short, damaged or "
            "of an earlier version: they stay there, and what no other line answers is asked again."
        )
    if run.identity["adapter"] == run.identity["primer"] != adapter_lib.fingerprint(None):
        progress.say("The adapter is the primer alone: kv_packet and primed answer alike.")
    folder = pathlib.Path(config.teacher or workdir / "teacher").expanduser()
    together = _together(run.examples)
    left = [parts for parts in together if any(_missing(run, e, file) for e, _ in parts)]
    done = len(together) - len(left)
    for parts in progress.track(left, "answering about sets of documents", done):
        _answer_parts(run, parts, run.template.budget(config.new_tokens), folder, file)
    requests = [_request(run, *pair) for pair in run.examples[: config.num_timed]]
    timed = timings(
        workdir / "timings.json", run.model, run.methods, requests, config.runs, progress
    )
    summaries = {spec_of(s): s for s in summary.aggregate(file.rows, config.seed)}
    if earlier := summary.unknown_doubts(file.rows):
        progress.say(
            f"{earlier} answers were written by an earlier version, which did not keep whether "
            "they are in doubt: what reading again does is not told of their methods. A new "
            "--workdir has it."
        )
    about = {"machine": timed["machine"], "date": timed["date"], "model": run.model.name}
    results = [summaries[spec] | timed["methods"][spec] | about for spec in run.methods]
    text = json.dumps([sealed.stamped(r) for r in results], indent=1)
    write_whole(workdir / "results.json", text + "\n")
    return results


def prepare_run(
    config: ConfigDict,
    cache_dir: str | None = None,
    mesh: str | None = None,
    begun: Sequence[str] = (),
) -> Run:
    """Loads and checks all that a run needs; nothing is computed yet.

    Args:
      begun: specs of methods besides the config's; those that the workdir has answers of.

    Raises:
      ValueError: settings that no run can have, before the model is loaded where that is possible.
    """
    _check_settings(config)
    examples = _first_questions(
        data.load(config.dataset.name, config.dataset.split, **data.options(config.dataset)),
        config.num_samples,
    )
    if config.dataset.get("best_first"):
        examples = [part for example in examples for part in best_first(example)]
    specs = list(dict.fromkeys([summary.REFERENCE, *listed(config.methods), *begun]))
    for spec in specs:  # before the model is loaded
        make(spec)
    if config.adapter == adapters.NONE and "adapter" in _roles(specs):
        begun_only = "adapter" not in _roles(listed(config.methods))
        raise ValueError(
            "kv_packet needs an adapter: with --config.adapter=none it would be no_recompute. "
            + (
                "The workdir has answers of it: give their adapter, or another --workdir."
                if begun_only
                else "Leave it out of --config.methods, or give an adapter."
            )
        )
    texts = _primer_texts(config, examples)
    model = models.load_text_model(
        config.model, config.dtype, cache_dir, mesh, config.shared_layers
    )
    sharding.log_layout(model.config, model.params)
    by_role = _load_adapters(config, model, specs, texts)
    methods = dict(make(spec, **by_role) for spec in specs)
    for method in methods.values():
        method.check(model)
    template = data.TEMPLATES[config.template]
    soft_tokens = max((a.num_tokens for a in by_role.values()), default=0)
    encoded = [
        teacher.encode(model, template, example, soft_tokens, template.budget(config.new_tokens))
        for example in examples
    ]
    for spec in dict.fromkeys(make(spec)[0] for spec in listed(config.methods)):
        _check_documents(model, spec, methods[spec], examples, encoded)
    identity = _identity(config, model, template, by_role, examples)
    pairs = list(zip(examples, encoded, strict=True))
    return Run(model, template, config.dataset.name, methods, pairs, identity)


def _identity(
    config: ConfigDict,
    model: LanguageModel,
    template: Template,
    by_role: dict[str, Adapter],
    examples: Sequence[Example],
) -> dict:
    dataset = config.dataset.to_dict() | {"options": data.options(config.dataset)}
    if not config.dataset.get("best_first"):  # as in workdirs from before there was a choice
        dataset.pop("best_first", None)
    return {
        "model": model.fingerprint,
        "dtype": str(model.dtype),
        "tokenizer": digest([model.tokenizer.fingerprint, *model.tokenizer.stop_ids]),
        "adapter": adapter_lib.fingerprint(by_role.get("adapter")),
        "primer": adapter_lib.fingerprint(by_role.get("primer")),
        "template": digest(dataclasses.asdict(template)),
        "dataset": dataset,
        "examples": digest([dataclasses.asdict(e) for e in examples]),
        "num_samples": config.num_samples,
        "new_tokens": config.new_tokens,
        "seed": config.seed,
        "scoring": metrics.VERSION,
        "methods": VERSION,
    }


def _check_documents(
    model: LanguageModel,
    spec: str,
    method: Method,
    examples: Sequence[Example],
    encoded: Sequence[EncodedExample],
) -> None:
    """Raises ValueError for a document too long for the method's packets, or that they would drop.

    Of a request's length the adapter's primer is no part, but of a document's it is.
    """
    adapter, compressor = method.adapter, method.compressor
    for example, ids in zip(examples, encoded, strict=True):
        for i, document in enumerate(ids.documents):
            what = f"{spec}, document {i} of {example.id}"
            check_document(model, adapter, document, what, compressor)
            check_kept(adapter, compressor, document, what)


def _check_settings(config: ConfigDict) -> None:
    if config.template not in data.TEMPLATES:
        known = ", ".join(data.TEMPLATES)
        raise ValueError(f"template {config.template!r} is not one of {known}.")
    if config.primer and not re.fullmatch(r"\w+:[1-9]\d*", config.primer):
        raise ValueError(
            f"primer {config.primer!r} is not a data set and a number of its documents, as "
            "biography:3."
        )
    if config.primer and "primer" not in _roles(listed(config.methods)):
        raise ValueError(
            f"--config.primer={config.primer} is of primed, which --config.methods does not name."
        )
    if config.num_samples < 0:
        raise ValueError(f"num_samples is {config.num_samples}: it is 0, for all, or more.")
    if config.new_tokens < 1:
        raise ValueError(f"new_tokens is {config.new_tokens}: answers have 1 or more.")
    if min(config.num_timed, config.runs) < 1:
        raise ValueError(
            f"num_timed is {config.num_timed} and runs {config.runs}: results.json has FLOPs and "
            "seconds, for which at least one example must be timed once."
        )


def _first_questions(source: Sequence[Example], count: int) -> list[Example]:
    if count == 0:
        return list(source)
    examples, left = [], count
    for example in source:
        if left <= 0:
            break
        questions = example.questions[:left]
        examples.append(dataclasses.replace(example, questions=questions))
        left -= len(questions)
    if left > 0:
        raise ValueError(
            f"The data set has {count - left} questions, num_samples asks for {count}: lower it, "
            "or make the set larger (dataset.options.num_test for generated ones)."
        )
    return examples


def _load_adapters(
    config: ConfigDict,
    model: LanguageModel,
    specs: Sequence[str],
    primer_texts: tuple[str, ...] | None,
) -> dict[str, Adapter]:
    """The adapters that methods have a role for, by role."""
    roles, found = _roles(specs), {}
    if "adapter" in roles:
        given = config.adapter, config.template, config.other_model
        found["adapter"] = adapters.choose(model, *given)
    if "primer" in roles:
        found["primer"] = adapters.primer(model, config.template, primer_texts)
    return found


def _primer_texts(config: ConfigDict, examples: Sequence[Example]) -> tuple[str, ...] | None:
    """The first documents of a data set's training split; None for the usual primer.

    Raises ValueError where `examples` are about one of them.
    """
    if not config.primer:
        return None
    name, _, number = config.primer.partition(":")
    own = data.options(config.dataset) if name == config.dataset.name else {}
    where = {option: value for option, value in own.items() if option in resume.PATHS}
    drawn = data.load(name, "train", **where)
    documents = (d for i in range(len(drawn)) for d in drawn[i].documents)
    texts = tuple(itertools.islice(documents, int(number)))
    if {d for e in examples for d in e.documents} & set(texts):
        raise ValueError(
            f"--config.primer={config.primer}: the questions are about one of these documents. A "
            "primer never contains what it primes: give documents of another data set."
        )
    return texts


def _roles(specs: Sequence[str]) -> set[str]:
    return {METHODS[spec.split(":")[0]].adapter_role for spec in specs} - {None}


def _missing(run: Run, example: Example, file: RowFile) -> list[str]:
    """Specs of methods that have not answered an example."""
    return [spec for spec in run.methods if (example.id, spec) not in file.done]


def _together(examples: Sequence[Pair]) -> list[list[Pair]]:
    """Consecutive examples about the same documents in any order, ORDERS at most."""

    def read(pair: Pair):
        return pair[1].preamble, sorted(pair[1].documents)

    groups = []
    for _, same in itertools.groupby(examples, read):
        same = list(same)
        groups += [same[i : i + ORDERS] for i in range(0, len(same), ORDERS)]
    return groups


def _answer_parts(
    run: Run, parts: Sequence[Pair], new_tokens: int, folder: pathlib.Path, file: RowFile
) -> None:
    """Answers what is missing about one set of documents; no packet is built twice.

    All orders are built whatever is missing: a packet's last bits depend on those beside it.
    """
    model, template, taught = run.model, run.template, []
    for example, encoded in parts:
        targets = teacher.targets(model, encoded, new_tokens, folder, buckets=COARSE)
        said = reference(model, targets, example.questions, template)
        missing = set(_missing(run, example, file))
        taught.append((example, targets, said, missing))
        if summary.REFERENCE in missing:
            file.write(answer_rows(summary.REFERENCE, example, said, said, run.dataset))
        programs.make_room()
    preamble, orders = parts[0][1].preamble, [encoded.documents for _, encoded in parts]
    for group in _by_recipe(run.methods):
        if not any(group.keys() & missing for *_, missing in taught):
            continue
        built = next(iter(group.values())).build_orders(model, preamble, orders)
        for (example, targets, said, missing), packets in zip(taught, built, strict=True):
            for spec in [spec for spec in group if spec in missing]:
                method = group[spec].reseeded(example.id)
                entry = Entry(method, method.arrange(model, packets))
                answers = answer(model, entry, targets, example.questions, template, new_tokens)
                file.write(answer_rows(spec, example, answers, said, run.dataset))
            programs.make_room()


def _by_recipe(methods: dict[str, Method]) -> list[dict[str, Method]]:
    """The methods but for the reference, in groups that build the same packets."""
    groups: dict[Hashable, dict[str, Method]] = {}
    for spec, method in methods.items():
        if spec != summary.REFERENCE:
            method = dataclasses.replace(method, buckets=COARSE)
            groups.setdefault(method.recipe, {})[spec] = method
    return list(groups.values())


def _request(run: Run, example: Example, encoded: EncodedExample):
    """The first question alone, and what makes a method's entry for it."""
    request = Request(encoded.preamble, encoded.documents, encoded.questions[0])
    return request, lambda spec: _entry(run, spec, example, encoded)


def _entry(run: Run, spec: str, example: Example, encoded: EncodedExample) -> Entry:
    method = run.methods[spec].reseeded(example.id)
    return Entry(method, method.store(run.model, encoded.preamble, encoded.documents))
