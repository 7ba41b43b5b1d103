"""Points to measure: a model, random ids of given lengths, methods. The work of launch.cost."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import models
from kvpacket_jax import adapters
from kvpacket_jax.measure import beside_torch, cost, decoding
from kvpacket_jax.measure.cost import ALONE, Cost
from kvpacket_jax.measure.machine import Machine, measure_machine
from kvpacket_jax.measure.request import Entry, check_in_memory, on_tier, query_alone
from kvpacket_jax.measure.work import is_one_pass
from kvpacket_jax.methods import Method, Request, settings
from kvpacket_jax.methods.kv_packet import KVPacket
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import CHUNK
from kvpacket_jax.runtime.progress import SILENT, Progress
from models import LanguageModel, sharding


class Beside(NamedTuple):
    """The same work in PyTorch's transformers."""

    peer: str  # its name and versions
    pairs: list[beside_torch.Pair]


class PointCosts(NamedTuple):
    """The rows of one point, and what they were measured with."""

    rows: list[Cost]  # the first is the query alone
    request: Request
    batch: int  # requests at once
    model: LanguageModel
    machine: Machine
    decoding: decoding.Decoding  # after the query alone
    beside: Beside | None  # transformers', where it can be had


def run(
    point: Mapping[str, Any],
    cache_dir: str | os.PathLike | None = None,
    mesh: str | None = None,
    profile_dir: str | None = None,
    progress: Progress = SILENT,
) -> Iterator[PointCosts]:
    """Loads a model and measures its points in turn: configs/cost.py says what each field is.

    Raises:
      ValueError, OSError, RuntimeError: a point that cannot be measured, and what would do; before
        any is.
    """
    specs = settings.listed(point["methods"])
    points = [document_lengths(text) for text in point["documents"].split("/")]
    batches = _batches(str(point["batch"]))
    if mesh is not None:
        sharding.check_one_replica(mesh)
    check_in_memory(point["tier"])
    if point["runs"] < 1:
        raise ValueError(f"runs is {point['runs']}: every method is timed once or more.")
    for spec in specs:  # before the model is loaded
        settings.make(spec)
    seed = point["seed"]
    with progress.step(f"Loading {point['model']}"):
        source, dtype, shared = point["model"], point["dtype"], point["shared_layers"]
        kernel = {"paged_kernel": point["paged_kernel"]}
        model = models.load(source, dtype, cache_dir, mesh, shared, **kernel)
        sharding.log_layout(model.config, model.params)
        adapter = make_adapter(model, point["adapter"], point["header"], point["trailer"], seed)
    primer = _random_primer(model, point["primer"], seed)
    methods = dict(settings.make(spec, adapter, primer) for spec in specs)
    for method in methods.values():
        method.check(model)
    requests = [
        random_request(model, point["preamble"], lengths, point["query"], seed)
        for lengths in points
    ]
    soft_tokens = max((m.adapter.num_tokens for m in methods.values() if m.adapter), default=0)
    for request in requests:
        model.check_length(_positions(request, soft_tokens))
    with progress.step("Measuring this machine"):
        machine = measure_machine(model.dtype, model.num_devices)
    peer = None
    if point["beside_torch"] and 1 in batches and beside_torch.available(model, point["model"]):
        with progress.step("Loading it in transformers, for torch is installed"):
            peer = beside_torch.Peer(model, point["model"], cache_dir, machine.threads)
    given = machine, point["runs"], point["tier"], profile_dir, progress
    for request in requests:
        for batch in batches:
            yield measure_methods(model, methods, request, *given, peer, batch)


def _positions(request: Request, soft_tokens: int) -> int:
    """What a request spans, with the first chunk of its answer."""
    documents = sum(len(ids) + soft_tokens for ids in request.documents)
    return len(request.preamble) + documents + len(request.query) + CHUNK


def document_lengths(text: str) -> list[int]:
    """Lengths from "8x1024", "512" or several of them with commas; ValueError for anything else."""
    lengths = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)\s*x)?\s*(\d+)\s*", part)
        count, length = (int(n) if n else 1 for n in match.groups()) if match else (0, 0)
        if count < 1 or length < 1:
            raise ValueError(
                f"{part!r} is not a number of documents and their length: 8x1024 means eight of "
                "1,024 tokens, 4x256,512 four of 256 and one of 512."
            )
        lengths += [length] * count
    return lengths


def _batches(text: str) -> list[int]:
    """Sizes from "1" or "1/4/16"; ValueError for anything else."""
    parts = text.split("/")
    if not all(re.fullmatch("[1-9][0-9]{0,3}", part) for part in parts):
        raise ValueError(
            f"batch is {text!r}; it is how many requests run at once, or several such numbers, "
            "as 1/4/16."
        )
    return list(map(int, parts))


def random_request(
    model: LanguageModel, preamble: int, documents: Sequence[int], query: int, seed: int = 0
) -> Request:
    """A request of such lengths in tokens; ids are random, and the same for the same seed."""
    rng = np.random.default_rng(seed)
    ids = lambda n: rng.integers(0, model.config.vocab_size, n).tolist()  # noqa: E731
    return Request(ids(preamble), [ids(n) for n in documents], ids(query))


def make_adapter(
    model: LanguageModel, source: str | None, header: int, trailer: int, seed: int = 0
) -> Adapter:
    """The trained adapter that `source` names (a folder or a shipped name), or a random one."""
    if source:
        # Whom it was trained for changes no cost: released ones and random models go together.
        return adapters.choose(model, source, other_model=True)
    return adapter_lib.init(jax.random.key(seed), model.params["embedding"], header, trailer)


def _random_primer(model: LanguageModel, length: int, seed: int) -> Adapter:
    """A primer of random tokens: what they are changes no cost of a request."""
    ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, length, np.int32)
    return adapter_lib.empty(model.config.dim)._replace(primer=jax.numpy.asarray(ids))


def measure_methods(
    model: LanguageModel,
    methods: Mapping[str, Method],
    request: Request,
    machine: Machine,
    runs: int = 5,
    tier: str = "device",
    profile_dir: str | None = None,
    progress: Progress = SILENT,
    peer: beside_torch.Peer | None = None,
    batch: int = 1,
) -> PointCosts:
    """Costs of one request: of the query alone over a ready cache, then of each method.

    Of a batch, the cost is that of all its requests together.

    Args:
      methods: by the labels of their rows. The cache that the query alone reads is the context of
        the first that composes packets as kv_packet does; a bare one, if there is none.
      runs: timed rounds.
      tier: where what a method stored lies: "device" or "host".
      profile_dir: where a trace of one more round is written (for TensorBoard or Perfetto).
      peer: the same model in transformers, to be timed beside single requests.
      batch: so many requests of the same query at once, over one context. Above 1 methods whose
        own pass runs the query are left out.
    """
    packets = next((name for name, m in methods.items() if m.reads_packets), None)
    sources = methods if packets is not None else {None: KVPacket()} | methods
    stored = {}
    for name, method in sources.items():
        with progress.step(f"{name or 'kv_packet'}: caching {len(request.documents)} documents"):
            caches = method.store(model, request.preamble, request.documents)
            stored[name] = Entry(method, jax.block_until_ready(caches), batch=batch)
    alone = query_alone(model, stored[packets], request)
    if batch > 1:
        together = [n for n in methods if not is_one_pass(model, stored[n], request)]
        if left_out := ", ".join(n for n in methods if n not in together):
            progress.say(f"Left out, for they run the query in a pass of their own: {left_out}")
        methods = {name: methods[name] for name in together}
    entries = {ALONE: alone} | {name: on_tier(stored[name], tier) for name in methods}
    rows = cost.measure(model, entries, request, runs, machine, peak=True, progress=progress)
    if profile_dir:
        with progress.step(f"Tracing one more run of each into {profile_dir}"):
            cost.trace(model, entries, request, profile_dir)
    with progress.step("Timing the tokens after the first"):
        decoded = decoding.measure(model, alone, request, machine, runs)
    beside = None
    if peer is not None and batch == 1:
        with progress.step(f"Timing {peer.name} beside it"):
            pairs = beside_torch.compare(model, peer, entries, request, runs)
        beside = Beside(peer.name, pairs)
    return PointCosts(rows, request, batch, model, machine, decoded, beside)
