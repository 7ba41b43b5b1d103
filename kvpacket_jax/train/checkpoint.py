"""Checkpoints of a training run: asynchronous, the newest two and the best by validation KL."""

import pathlib
from typing import NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from kvpacket_jax.train.loss import TrainState

_policies = ocp.training.preservation_policies


class Best(NamedTuple):
    """The best state by validation KL."""

    step: int
    state: TrainState
    metadata: dict


class Checkpoints:
    """One run's checkpoints, each with a description of the run: model, config, examples."""

    def __init__(self, folder: pathlib.Path):
        self._checkpointer = ocp.training.Checkpointer(
            folder,
            preservation_policy=_policies.AnyPreservationPolicy(
                [
                    _policies.LatestN(2),
                    _policies.BestN(
                        get_metric_fn=lambda m: m["kl"],
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
        found = self.metadata()
        if found["model"] != described["model"]:
            raise ValueError(
                f"The checkpoints are of a run on the model {found['model']}, this one trains "
                f"{described['model']}. Choose another --workdir."
            )
        if found.get("examples") != described.get("examples"):
            raise ValueError(
                "The checkpoints are of a run on other examples: a file of the mixture has been "
                "changed since. Put it back, or choose another --workdir."
            )
        return self._load(latest.step, state)

    def unscored(self) -> int | None:
        """The step of the newest checkpoint if it was saved without scores."""
        latest = self._checkpointer.latest
        return latest.step if latest and not latest.metrics else None

    def _load(self, step: int, like: TrainState) -> TrainState:
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        return self._checkpointer.load(step, abstract)

    def save(self, step: int, state: TrainState, described: dict, scores: dict) -> None:
        """Saves in the background; `scores` (with "kl") make it a candidate for the best."""
        self._checkpointer.wait()
        # The state's buffers are donated to the next step: what is written must be a copy.
        host = jax.device_get(state)
        self._checkpointer.save_async(
            step,
            host,
            force=True,
            overwrite=True,
            metrics=scores or None,
            custom_metadata=described,
        )

    def best(self, like: TrainState) -> Best:
        """The best checkpoint so far; one was saved with scores."""
        self._checkpointer.wait()
        scored = [c for c in self._checkpointer.checkpoints if c.metrics]
        chosen = min(scored, key=lambda c: c.metrics["kl"])
        return Best(chosen.step, self._load(chosen.step, like), dict(chosen.metrics))

    def close(self) -> None:
        """Waits for the last save."""
        self._checkpointer.wait()
        self._checkpointer.close()
