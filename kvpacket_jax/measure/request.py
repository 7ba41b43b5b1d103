"""A request as what is measured: one chain from what a method stored to the first token's logits.

Methods know nothing of it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from kvpacket_jax.methods import Method, Prepared, Request
from kvpacket_jax.packets.prefill import Prefilled, prefill
from models import LanguageModel

TIERS = ("device", "host", "disk")


class Entry(NamedTuple):
    """A method with what it stored for a request's documents, and the tier where that lies."""

    method: Method
    stored: Any  # on the device, for counting; a request starts from `tier`
    tier: str = "device"  # or "host", "disk"
    load: Callable[[], Any] | None = None  # what is stored, brought from the tier; None: on device
    forget: Callable[[], None] | None = None  # what undoes a load's traces (a disk's page cache)

    def loaded(self) -> "Entry":
        """The entry as it is when a load has brought what is stored."""
        return self if self.load is None else Entry(self.method, self.load())


def first_token(model: LanguageModel, entry: Entry, request: Request) -> Prefilled:
    """All a method does from stored caches to the first token's logits; no host synchronisation."""
    with jax.profiler.TraceAnnotation("prepare"):
        prepared = entry.method.prepare(model, entry.stored, request)
    if prepared.prefilled is not None:  # the method's own pass ran the query
        return prepared.prefilled
    with jax.profiler.TraceAnnotation("prefill"):
        return prefill(model, prepared.context, [request.query], prepared.query_start)


def on_tier(entry: Entry, tier: str) -> Entry:
    """The entry with what is stored on the device or in host memory.

    Raises:
      ValueError: another tier. What is on disk is read by whoever wrote it: see `Entry.load`.
    """
    if tier not in TIERS[:2]:
        raise ValueError(
            f"tier is {tier!r}; it is {' or '.join(TIERS[:2])} here. launch.answer --show_cost "
            "measures packets on disk."
        )
    if tier == "device":
        return Entry(entry.method, entry.stored)
    leaves, tree = jax.tree.flatten(entry.stored)
    places = [getattr(leaf, "sharding", None) for leaf in leaves]
    host = jax.device_get(leaves)

    def load():
        return tree.unflatten(map(jax.device_put, host, places))

    return Entry(entry.method, entry.stored, tier, load)


@dataclasses.dataclass(frozen=True)
class Ready(Method):
    """Reads the query over the context that is stored."""

    start: int

    def prepare(self, model, stored, request, new_tokens=0) -> Prepared:
        return Prepared(stored, self.start)


def query_alone(model: LanguageModel, entry: Entry, request: Request) -> Entry:
    """The query's own pass over the context that a method composes, made beforehand.

    What no method that leaves the query to `prefill` can be faster than over this context.
    """
    prepared = entry.method.prepare(model, entry.stored, request)
    return Entry(Ready(prepared.query_start), jax.block_until_ready(prepared.context))
