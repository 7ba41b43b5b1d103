"""Checkpoints of a training run: asynchronous, the newest two and the best by its worst kind."""

import pathlib
from typing import NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from kvpacket_jax.train.step import TrainState

_policies = ocp.training.preservation_policies


class Best(NamedTuple):
    """The state whose worst kind of documents is best."""

    step: int
    state: TrainState
    measures: dict  # {"worst": ratio of KL to the untrained adapter's, "kind", "scores"}


class Checkpoints:
    """One run's checkpoints, each with a description of the run: model, config, examples, …."""

    def __init__(self, folder: pathlib.Path):
        self._checkpointer = ocp.training.Checkpointer(
            folder,
            preservation_policy=_policies.AnyPreservationPolicy(
                [
                    _policies.LatestN(2),
                    _policies.BestN(
                        get_metric_fn=lambda m: m["worst"],
                        reverse=True,
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
        )

    def metadata(self) -> dict | None:
        """The description saved with the newest state; None where there is none."""
        latest = self._checkpointer.latest
        return latest and self._checkpointer.metadata(latest.step).custom_metadata

    def restore(self, state: TrainState, described: dict) -> TrainState:
        """The newest state, or `state` where there is none.

        Raises ValueError if the run in the folder trains another model or on other examples.
        """
        latest = self._checkpointer.latest
        if latest is None:
            return state
        saved = self.metadata()
        if saved["model"] != described["model"]:
            raise ValueError(
                f"The checkpoints are of a run on the model {saved['model_name']} "
                f"({saved['model'][:16]}), this one trains {described['model_name']} "
                f"({described['model'][:16]}). Choose another --workdir."
            )
        if saved["examples"] != described["examples"]:
            raise ValueError(
                "The checkpoints are of a run on other examples: a data set of the mixture has "
                "changed since. Put it back, or choose another --workdir."
            )
        return self._load(latest.step, state)

    def _load(self, step: int, like: TrainState) -> TrainState:
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        saved = iter(jax.tree.leaves(self._checkpointer.load(step, _storable(abstract))))
        return jax.tree.map(lambda x: next(saved) if x.size else x, like)

    def save(self, step: int, state: TrainState, described: dict, measures: dict) -> None:
        """Saves in the background; `measures` (as Best has them) make it a candidate for it."""
        self._checkpointer.wait()
        # Copied to the host at once: writing takes a while, and steps go on meanwhile.
        host = _storable(jax.device_get(state))
        self._checkpointer.save_async(
            step,
            host,
            force=True,
            overwrite=True,
            metrics={"worst": measures["worst"]} if measures else None,
            custom_metadata=described | {"measures": measures},
        )

    def best(self, like: TrainState) -> Best:
        """The best checkpoint so far; one was saved with measures."""
        self._checkpointer.wait()
        measured = [c for c in self._checkpointer.checkpoints if c.metrics]
        step = min(measured, key=lambda c: c.metrics["worst"]).step
        measures = self._checkpointer.metadata(step).custom_metadata["measures"]
        return Best(step, self._load(step, like), measures)

    def close(self) -> None:
        """Waits for the last save."""
        self._checkpointer.wait()
        self._checkpointer.close()


def _storable(tree):
    """The tree without its empty arrays, which orbax does not take."""
    return jax.tree.map(lambda x: x if x.size else None, tree)
