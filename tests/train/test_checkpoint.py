"""Checkpoints: the newest, the best, and whose they are."""

import random
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import train as train_config
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.runtime import sealed
from kvpacket_jax.train import setup
from kvpacket_jax.train import step as step_lib
from kvpacket_jax.train.checkpoint import Checkpoints


class OldAdapter(NamedTuple):
    header: jax.Array
    trailer: jax.Array
    primer: None
    writer: None


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


def test_what_was_saved_before_adapters_had_distillers_goes_on(tmp_path):
    state = state_at(3)
    is_adapter = lambda x: isinstance(x, Adapter)  # noqa: E731
    older = jax.tree.map(
        lambda x: OldAdapter(*x[:4]) if is_adapter(x) else x, state, is_leaf=is_adapter
    )
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, older, DESCRIBED, {})
    checkpoints.close()
    again = Checkpoints(tmp_path).restore(state_at(0), DESCRIBED)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_scores_of_a_step_that_was_saved_without_them(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, state_at(0), DESCRIBED, {"worst": 1.0, "kind": "a", "scores": {}})
    checkpoints.save(4, state_at(4), DESCRIBED, {})
    checkpoints.save(4, state_at(4), DESCRIBED, {"worst": 0.5, "kind": "b", "scores": {}})
    assert checkpoints.best(state_at(0)).step == 4
    assert checkpoints.metadata()["measures"]["kind"] == "b"


def write_steps(folder, *steps: int) -> None:
    checkpoints = Checkpoints(folder)
    for step in steps:
        measures = {"worst": 1 / (step + 1), "kind": "a", "scores": {}}
        checkpoints.save(step, state_at(step), DESCRIBED, measures)
    checkpoints.close()


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    write_steps(folder, 4, 6)
    return folder


def damage(folder, how: str) -> None:
    if how == "emptied":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "unsealed":
        (folder / sealed.FILE).unlink()
    elif how == "short":
        largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-7])
    else:
        (folder / sealed.FILE).write_text("[" * 100_000 if how == "nested" else "{}")


@pytest.mark.parametrize("how", ["emptied", "unsealed", "short", "nested", "of nothing"])
def test_a_damaged_newest_is_named_and_the_one_before_is_used(two_steps, tmp_path, how):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_steps, folder)
    damage(folder / "6", how)
    said = []
    again = Checkpoints(folder, said.append)
    assert len(said) == 1 and "DAMAGED" in said[0] and "step 6" in said[0] and "step 4" in said[0]
    restored = again.restore(state_at(0), DESCRIBED)
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(4))
    assert again.best(state_at(0)).step == 4
    again.save(6, state_at(6), DESCRIBED, {})  # its name is free
    again.close()
    assert (folder / "damaged-6").is_dir()
    Checkpoints(folder, said.append).restore(state_at(0), DESCRIBED)
    assert len(said) == 1


def test_a_first_checkpoint_that_was_cut_short_is_begun_anew(tmp_path):
    write_steps(tmp_path / "run", 0)
    for number in (1, 2):  # and once more, before a later one is saved
        (tmp_path / "run" / "0" / sealed.FILE).unlink()
        said = []
        again = Checkpoints(tmp_path / "run", said.append)
        assert again.metadata() is None and "DAMAGED" in said[0] and "anew" in said[0]
        Checkpoints(tmp_path / "run", pytest.fail).close()  # killed before the first save
        again.save(0, state_at(0), DESCRIBED, {})
        again.close()
        assert len(list((tmp_path / "run").glob("damaged-0*"))) == number


def test_every_flipped_byte_is_the_same_state_or_the_one_before(two_steps, tmp_path):
    rng = random.Random(0)
    for file in sorted(p for p in (two_steps / "6").rglob("*") if p.is_file()):
        for place in rng.sample(range(file.stat().st_size), min(3, file.stat().st_size)):
            folder = tmp_path / "checkpoints"
            shutil.copytree(two_steps, folder)
            target = folder / file.relative_to(two_steps)
            content = bytearray(target.read_bytes())
            content[place] ^= 1 << rng.randrange(8)
            target.write_bytes(content)
            said = []
            Checkpoints(folder, said.append)
            assert (folder / "6").exists() == (not said)
            # White space in the seal is no damage.
            assert said or target.name == sealed.FILE
            shutil.rmtree(folder)


def test_where_none_can_be_read_training_does_not_begin_anew(two_steps, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_steps, folder)
    for step in ("4", "6"):
        damage(folder / step, "short")
    with pytest.raises(ValueError, match=r"No checkpoint in .*step 4.*step 6.* remove .*checkpoin"):
        Checkpoints(folder)
    assert {p.name for p in folder.iterdir()} >= {"4", "6"}  # nothing is touched


def test_checkpoints_of_an_earlier_version_go_on(two_steps, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_steps, folder)
    (folder / "6" / sealed.FILE).unlink()
    metadata = folder / "6" / sealed.METADATA
    metadata.write_text(metadata.read_text().replace('"sealed"', '"scaled"'))
    restored = Checkpoints(folder, pytest.fail).restore(state_at(0), DESCRIBED)
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(6))


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
