"""The batch of a training step, on one host or on many."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from kvpacket_jax.data import EncodedExample, Example
from kvpacket_jax.runtime import hosts
from kvpacket_jax.teacher import Targets
from kvpacket_jax.train import loss
from models import LanguageModel, sharding


class Made(NamedTuple):
    """A step's batch, with the ids of its examples, all hosts' together."""

    batch: loss.Batch
    work: dict[str, int]  # tokens, and tokens computed with the padding
    ids: list[str]


class Batches:
    """Which examples a step has follows from the seed and the step alone.

    Each host teaches those of its own copies of the model. The sizes of their arrays, and whether
    to stop, are all that the hosts tell each other.

    Args:
      examples: by their place in the mixture.
      encode: Example -> EncodedExample; teach: (model, EncodedExample) -> Targets.
      readers: the teachers, by the row of the mesh they lie on; of this host only.
    """

    def __init__(
        self,
        config: ConfigDict,
        examples: Sequence[Example],
        encode: Callable[[Example], EncodedExample],
        teach: Callable[[LanguageModel, EncodedExample], Targets],
        readers: dict[int, LanguageModel],
        mesh: jax.sharding.Mesh | None,
    ):
        self._size, self._reduction = config.batch_size, config.reduction
        self._adapter_tokens = config.header + config.trailer
        self._examples, self._encode, self._teach = examples, encode, teach
        self._readers, self._mesh = readers, mesh

    def __call__(self, step: int, stop: Callable[[], bool]) -> Made | None:
        """The batch of a step; None if any host was told to stop.

        Raises what went wrong on this host, RuntimeError if it was another.
        """
        stopping, lessons = stop(), []  # asked first: a targets may take longer than is left
        try:
            chosen = [self._examples[step * self._size + i] for i in range(self._size)]
            if not stopping:
                lessons = self._lessons(chosen)
        except Exception:
            self._tell(failed=True)  # the others must not wait for this host
            raise
        told = self._tell(lessons, stopping)
        if told is None:
            return None
        sizes, count, tokens = told
        batch = loss.pack(lessons, sizes, count)
        if self._mesh:
            where = NamedSharding(self._mesh, PartitionSpec(sharding.DATA))
            batch = jax.tree.map(
                lambda x: jax.make_array_from_process_local_data(
                    where, x, (self._size, *x.shape[1:])
                ),
                batch,
            )
        computed = self._size * loss.computed(sizes, self._adapter_tokens)
        return Made(batch, {"tokens": tokens, "computed": computed}, [e.id for e in chosen])

    def _lessons(self, chosen: Sequence[Example]) -> list[Targets]:
        each = sharding.examples_per_replica(self._mesh, self._size)
        lessons = []
        for row, reader in self._readers.items():
            for example in chosen[row * each : (row + 1) * each]:
                lessons.append(self._teach(reader, self._encode(example)))
        return lessons

    def _tell(self, lessons=(), stopping=False, failed=False):
        """(sizes, count of the loss, tokens) over all hosts; None where one was told to stop."""
        most, sums = [0] * len(loss.Sizes._fields), [0, 0]
        if lessons:
            most = loss.sizes(lessons, self._adapter_tokens)
            count = loss.counts(lessons)[self._reduction]
            sums = [count, loss.tokens(lessons, self._adapter_tokens)]
        told = hosts.share(np.array([*sums, *most, stopping, failed], np.int32))
        *largest, stopped, someone_failed = told[:, 2:].max(axis=0).tolist()
        if someone_failed and not failed:
            raise hosts.another_failed()
        if stopped or failed:
            return None
        count, tokens = told[:, :2].sum(axis=0).tolist()
        return loss.Sizes(*largest), 1 if self._reduction == "sum" else count, tokens
