"""Checkpoints: the newest, the best, and whose they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import train as train_config
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.train import setup
from kvpacket_jax.train import step as step_lib
from kvpacket_jax.train.checkpoint import Checkpoints

DESCRIBED = {"model": "it", "model_name": "it", "config": {}, "examples": "them"}


def state_at(step: int) -> step_lib.TrainState:
    """Without a trailer: orbax takes no empty arrays."""
    adapter = Adapter(jnp.full((3, 8), float(step)), jnp.zeros((0, 8)))
    optimizer = setup.make_optimizer(train_config.get_config())
    return step_lib.init_state(adapter, optimizer)._replace(step=jnp.int32(step))


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.metadata() is None
    for step, worst in ((0, 1.0), (1, 0.5), (2, None), (3, 0.75), (4, None), (5, None)):
        measures = {} if worst is None else {"worst": worst, "kind": f"of {step}", "scores": {}}
        checkpoints.save(step, state_at(step), DESCRIBED, measures)
    best = checkpoints.best(state_at(0))
    assert best.step == 1 and best.measures["kind"] == "of 1"
    jax.tree.map(np.testing.assert_array_equal, best.state, state_at(1))
    checkpoints.close()
    assert {p.name for p in tmp_path.iterdir() if p.name.isdigit()} == {"1", "4", "5"}
    again = Checkpoints(tmp_path)
    newest = again.restore(state_at(0), DESCRIBED)
    jax.tree.map(np.testing.assert_array_equal, newest, state_at(5))
    assert again.metadata()["measures"] == {}


def test_scores_of_a_step_that_was_saved_without_them(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, state_at(0), DESCRIBED, {"worst": 1.0, "kind": "a", "scores": {}})
    checkpoints.save(4, state_at(4), DESCRIBED, {})
    checkpoints.save(4, state_at(4), DESCRIBED, {"worst": 0.5, "kind": "b", "scores": {}})
    assert checkpoints.best(state_at(0)).step == 4
    assert checkpoints.metadata()["measures"]["kind"] == "b"


@pytest.mark.parametrize(
    ("field", "message"),
    [("model", "a run on the model it .*Choose another"), ("examples", "a run on other examples")],
)
def test_a_run_on_something_else_is_not_resumed(tmp_path, field, message):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_at(1), DESCRIBED, {})
    checkpoints.close()
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path).restore(state_at(0), DESCRIBED | {field: "another"})
