"""Where parameters are placed on a mesh, and that their values do not change."""

import dataclasses

import jax
import numpy as np
import pytest

import models
from models import CONFIGS, sharding, transformer
from tests.support.golden import GOLDEN

SMALL = dataclasses.replace(
    CONFIGS["llama-3.1-8b"], dim=64, num_layers=2, vocab_size=96, head_dim=8, mlp_dim=48
)


def shape_of(config, text: str) -> dict[str, int]:
    return dict(sharding.make_mesh(text, config).shape)


def specs(config, text: str) -> dict[str, tuple]:
    mesh = sharding.make_mesh(text, config)
    params = jax.eval_shape(lambda k: transformer.init_params(config, k), jax.random.key(0))
    actual = {}
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = sharding.path_name(path)
        actual[name] = tuple(sharding.spec(config, mesh, name, x.shape))
    return actual


def test_key_value_heads_get_the_greatest_common_divisor():
    config = dataclasses.replace(SMALL, num_heads=6, num_kv_heads=2)
    assert shape_of(config, "model:4") == {"data": 1, "kv": 2, "rest": 2}
    assert shape_of(config, "data:4,model:2") == {"data": 4, "kv": 2, "rest": 1}
    assert shape_of(config, "data:8") == {"data": 8, "kv": 1, "rest": 1}


@pytest.mark.parametrize(
    "text", ["model", "model:0", "rows:2", "data:2,data:4", "", "data:2 model:4"]
)
def test_a_mesh_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"not of the form data:2,model:4"):
        sharding.make_mesh(text, SMALL)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="takes 16 devices; there are 8"):
        sharding.make_mesh("data:4,model:4", SMALL)


def test_query_heads_are_split_where_a_group_divides():
    both = ("kv", "rest")
    even = dataclasses.replace(SMALL, num_heads=8, num_kv_heads=2)  # groups of 4 over rest 2
    assert specs(even, "model:4")["q"] == (both, None, None)
    assert specs(even, "model:4")["o"] == (None, both, None)
    odd = dataclasses.replace(SMALL, num_heads=6, num_kv_heads=2)  # groups of 3
    assert specs(odd, "model:4")["q"] == ("kv", None, None)
    # Three key/value heads on one device of two: a half of the queries is not that of whole heads.
    three = dataclasses.replace(SMALL, num_heads=6, num_kv_heads=3)
    assert specs(three, "model:2")["q"] == ("kv", None, None)


def test_what_divides_nothing_is_whole_and_reported():
    config = dataclasses.replace(SMALL, num_heads=6, num_kv_heads=2, mlp_dim=50, vocab_size=97)
    actual = specs(config, "model:4")
    assert actual["mlp/gate"] == ("kv", None)
    assert actual["embedding"] == (None, None)
    config = dataclasses.replace(config, mesh=sharding.make_mesh("model:4", config))
    params = jax.eval_shape(lambda k: transformer.init_params(config, k), jax.random.key(0))
    whole = {names: (copies, size) for names, copies, size in sharding.copies(config, params)}
    (four,) = (names for names, (copies, _) in whole.items() if copies == 4)
    assert {"embedding", "final_norm", "attention_norm"} <= set(four)
    (two,) = (names for names, (copies, _) in whole.items() if copies == 2)
    assert set(two) == {"q", "k", "v", "o", "mlp/gate", "mlp/up", "mlp/down"}
    heads = 2 * 2 * config.dim * config.head_dim * (6 + 2)  # q and o, k and v, of two layers
    assert whole[two] == (2, 4 * (heads + 2 * 3 * config.dim * 50))
    assert "4 copies" in sharding.describe(config, params)


def test_a_parameter_without_a_rule_is_refused_by_name():
    mesh = sharding.make_mesh("model:2", SMALL)
    with pytest.raises(ValueError, match="'router'"):
        sharding.spec(SMALL, mesh, "router", (4, 4))


@pytest.mark.parametrize("scan", [False, True])
def test_weights_are_read_to_where_they_belong(tiny, scan):
    source = GOLDEN / "tiny_qwen2"
    whole = tiny("tiny_qwen2", scan_layers=scan).params
    model = models.load(str(source), "float32", mesh="data:2,model:4", scan_layers=scan)
    wanted = sharding.param_shardings(model.config, model.params)

    def check(path, x, place, one):
        assert x.sharding.is_equivalent_to(place, x.ndim), path
        np.testing.assert_array_equal(x, one)

    jax.tree_util.tree_map_with_path(check, model.params, wanted, whole)
    assert model.fingerprint == tiny("tiny_qwen2").fingerprint
    split = model.params["layers"]["q"] if scan else model.params["layers"][0]["q"]
    assert split.addressable_shards[0].data.size == split.size // 4


def test_random_weights_do_not_depend_on_the_mesh(monkeypatch):
    monkeypatch.setitem(CONFIGS, "small", SMALL)
    one, many = models.load("random:small"), models.load("random:small", mesh="model:8")
    jax.tree.map(np.testing.assert_array_equal, one.params, many.params)
    assert one.fingerprint == many.fingerprint


def test_answers_come_from_one_replica():
    for text in ("model:4", "data:1,model:2"):
        sharding.check_one_replica(text)
    with pytest.raises(ValueError, match="2 replicas of the model, .* give model:4 alone"):
        sharding.check_one_replica("data:2,model:4")
    with pytest.raises(ValueError, match="2 replicas of the model, .* leave out --mesh"):
        models.load_text_model("smollm2-135m", mesh="data:2")  # before anything is fetched
