"""A request as what is measured: one chain from what a method stored to the first token's logits.

Methods know nothing of it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from kvpacket_jax.methods import Method, Prepared, Request
from kvpacket_jax.packets.prefill import Prefilled, prefill
from models import LanguageModel, paged

IN_MEMORY = ("device", "host")  # tiers; the third is "disk"


class Entry(NamedTuple):
    """A method with what it stored for a request's documents, and the tier where that lies."""

    method: Method
    stored: Any  # on the device, for counting; a request starts from `tier`
    tier: str = "device"  # or "host", "disk"
    load: Callable[[], Any] | None = None  # what is stored, brought from the tier; None: on device
    forget: Callable[[], None] | None = None  # called before each load, outside the clock
    batch: int = 1  # requests at once, of the same query over one context

    def loaded(self) -> "Entry":
        """The entry as it is when a load has brought what is stored."""
        return self if self.load is None else _on_device(self)._replace(stored=self.load())


def first_token(model: LanguageModel, entry: Entry, request: Request) -> Prefilled:
    """All a method does from stored caches to the first token's logits; no host synchronisation."""
    with jax.profiler.TraceAnnotation("prepare"):
        prepared = entry.method.prepare(model, entry.stored, request)
    if prepared.prefilled is not None:  # the method's own pass ran the query
        return prepared.prefilled
    with jax.profiler.TraceAnnotation("prefill"):
        return query_pass(model, entry, prepared, request)


def query_pass(
    model: LanguageModel, entry: Entry, prepared: Prepared, request: Request
) -> Prefilled:
    """The query's own pass over the context that a method left, in the method's buckets.

    A batch is as many rows over the one context.
    """
    start, buckets = prepared.query_start, entry.method.buckets
    queries = [request.query] * entry.batch
    return prefill(model, prepared.context, queries, start, buckets=buckets)


def check_in_memory(tier: str) -> None:
    """Raises ValueError for a tier that `on_tier` cannot put things on."""
    if tier not in IN_MEMORY:
        raise ValueError(
            f"tier is {tier!r}; it is {' or '.join(IN_MEMORY)} here. launch.answer --show_cost "
            "measures packets on disk."
        )


def on_tier(entry: Entry, tier: str) -> Entry:
    """The entry with what is stored on the device or in host memory.

    Raises:
      ValueError: another tier. A store gives an `Entry.load` for its own files on disk.
    """
    check_in_memory(tier)
    if tier == "device":
        return _on_device(entry)
    leaves, tree = jax.tree.flatten(entry.stored)
    places = [getattr(leaf, "sharding", None) for leaf in leaves]
    host = jax.device_get(leaves)

    def load():
        return tree.unflatten(map(jax.device_put, host, places))

    return entry._replace(tier=tier, load=load, forget=None)


def _on_device(entry: Entry) -> Entry:
    return entry._replace(tier="device", load=None, forget=None)


@dataclasses.dataclass(frozen=True)
class Ready(Method):
    """Reads the query over the context that is stored."""

    start: int

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        return Prepared(stored, self.start)


def query_alone(model: LanguageModel, entry: Entry, request: Request) -> Entry:
    """The query's own pass over the context that a method leaves, as caches that are ready.

    What no method that leaves the query to `prefill` can be faster than over this context.
    """
    prepared = entry.method.prepare(model, entry.stored, request)
    ready = Ready(prepared.query_start, buckets=entry.method.buckets)
    caches = tuple(paged.ready(model.config, c) for c in prepared.context)
    return _on_device(entry)._replace(method=ready, stored=jax.block_until_ready(caches))
