"""Checkpoints of a training run: asynchronous, the newest two and the best by its worst kind."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.runtime import hosts, sealed
from kvpacket_jax.runtime.sealed import Damaged
from kvpacket_jax.train.step import TrainState

_policies = ocp.training.preservation_policies

ASIDE = "damaged-"  # begins the name of a checkpoint that is not read


class Best(NamedTuple):
    """The state whose worst kind of documents is best."""

    step: int
    state: TrainState
    # {"worst": ratio of KL to that without training, "kind", "scale": of the writer, "scores"}
    measures: dict


class Checkpoints:
    """One run's checkpoints, each with a description of the run: model, config, examples, ….

    Each is sealed when it is on the disk, and checked when a run goes on: one that is damaged or
    incomplete is set aside, aloud, and the one before it counts. Raises ValueError where none is
    left: training does not begin anew because nothing could be read.
    """

    def __init__(self, folder: epath.PathLike, log: Callable[[str], None] = print):
        self._folder = hosts.absolute(folder)
        with hosts.together():
            if hosts.is_first():
                _set_damaged_aside(self._folder, log)
        self._sealer = ThreadPoolExecutor(1)
        self._sealing: Future | None = None
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
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
        # Older runs did not say what they were validated on.
        known = {"validated_on": described.get("validated_on")} | saved
        for part, what in (("examples", "the mixture"), ("validated_on", "validation")):
            if known[part] != described.get(part):
                raise ValueError(
                    f"The checkpoints are of a run on other examples: a data set of {what} has "
                    "changed since, or how this program cuts it. Put the file back, take the "
                    "version that the run began with, or choose another --workdir."
                )
        return self._load(latest.step, state)

    def _load(self, step: int, like: TrainState) -> TrainState:
        path = self._folder / str(step)
        try:
            sealed.check_folder(path)
        except Damaged as error:
            raise Damaged(f"The checkpoint {path} was damaged meanwhile: {error}.") from error
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        try:
            saved = iter(jax.tree.leaves(self._checkpointer.load(step, _storable(abstract))))
        except Exception as error:  # orbax has a dozen for what it cannot read
            raise ValueError(
                f"The checkpoint {path} cannot be read: {error}. To go on from the one before it, "
                "remove that folder."
            ) from error
        return jax.tree.map(lambda x: _like(x, next(saved)) if x.size else x, like)

    def save(self, step: int, state: TrainState, described: dict, measures: dict) -> None:
        """Saves in the background; `measures` (as Best has them) make it a candidate for it."""
        self._wait()
        # Copied to the host at once: writing takes a while, and steps go on meanwhile.
        host = _storable(jax.device_get(state))
        response = self._checkpointer.save_async(
            step,
            host,
            force=True,
            overwrite=True,
            metrics={"worst": measures["worst"]} if measures else None,
            custom_metadata=described | {"measures": measures} | sealed.MARK,
        )
        if hosts.is_first():
            self._sealing = self._sealer.submit(self._seal, response, self._folder / str(step))

    @staticmethod
    def _seal(response, path: epath.Path) -> None:
        response.result()
        sealed.seal_folder(path)

    def _wait(self) -> None:
        """Waits until the last save is sealed, on every host."""
        self._checkpointer.wait()
        with hosts.together():
            if self._sealing is not None:
                self._sealing.result()
                self._sealing = None

    def best(self, like: TrainState) -> Best:
        """The best checkpoint so far; one was saved with measures. Checked when it is loaded."""
        self._wait()
        measured = [c for c in self._checkpointer.checkpoints if c.metrics]
        step = min(measured, key=lambda c: c.metrics["worst"]).step
        measures = {"scale": 1.0} | self._checkpointer.metadata(step).custom_metadata["measures"]
        return Best(step, self._load(step, like), measures)

    def close(self) -> None:
        """Waits for the last save."""
        self._wait()
        self._sealer.shutdown()
        self._checkpointer.close()


def _set_damaged_aside(folder: epath.Path, log: Callable[[str], None]) -> None:
    """Renames checkpoints that are not as they were written; ValueError if no other is left."""
    if not folder.exists():
        return
    names = [path.name for path in folder.iterdir()]
    wrong: dict[int, str] = {}
    steps = sorted(int(name) for name in names if name.isdigit())
    for step in steps:
        try:
            sealed.check_folder(folder / str(step))
        except Damaged as error:
            wrong[step] = str(error)
    whole = [step for step in steps if step not in wrong]
    # Step 0 is begun anew without a loss, however often it was set aside ("damaged-0.1").
    trained = [step for step in wrong if step]
    aside = sorted(n for n in names if n.startswith(ASIDE) and n.split(".")[0] != f"{ASIDE}0")
    if not whole and (trained or aside):
        reasons = [f"step {step}: {reason}" for step, reason in wrong.items()]
        raise ValueError(
            f"No checkpoint in {folder} can be read ({'; '.join(reasons + aside)}). Training does "
            f"not begin at step 0 by itself: put a copy back, or remove {folder} to begin anew."
        )
    for step, reason in wrong.items():
        target = _free(folder, f"{ASIDE}{step}")
        (folder / str(step)).rename(target)
        rest = (
            f"the newest that is whole is of step {whole[-1]}" if whole else "the run begins anew"
        )
        log(
            f"DAMAGED: the checkpoint of step {step} in {folder}: {reason}. It is {target.name} "
            f"now; {rest}."
        )


def _free(folder: epath.Path, name: str) -> epath.Path:
    taken = {path.name for path in folder.iterdir()}
    names = (name, *(f"{name}.{i}" for i in range(1, len(taken) + 2)))
    return folder / next(n for n in names if n not in taken)


def _like(fresh: jax.Array, saved: jax.Array) -> jax.Array:
    """`saved`, committed to devices only if `fresh` is: else each program would compile again."""
    return saved if fresh.committed else jnp.asarray(np.asarray(saved))


class _Parts(NamedTuple):
    """An adapter without a distiller, as it was saved before there were any."""

    header: jax.Array | None
    trailer: jax.Array | None
    primer: jax.Array | None
    writer: dict | None


def _storable(tree):
    """The tree as orbax takes it, without its empty arrays."""
    whole = jax.tree.map(lambda x: x if x.size else None, tree)
    is_adapter = lambda x: isinstance(x, Adapter)  # noqa: E731

    def stored(x):
        return _Parts(*x[:4]) if is_adapter(x) and x.distiller is None else x

    return jax.tree.map(stored, whole, is_leaf=is_adapter)
