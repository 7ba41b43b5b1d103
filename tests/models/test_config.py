"""Configs: what is read, what is refused by name, and the sizes of the named ones."""

import dataclasses
import math

import jax
import pytest

import models
from models.checkpoint import hf_config
from models.transformer import init_params
from tests.support.configs import HF

# As published on the models' pages and counted in their checkpoints (tied matrices once). The demo
# models' GGUF files store the output matrix beside the embeddings.
PARAMETERS = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-8b-instruct": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-coder-0.5b": 494_032_768 + 151_936 * 896,
    "qwen2.5-coder-1.5b": 1_543_714_304 + 151_936 * 1536,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
}


@pytest.mark.parametrize("name", models.CONFIGS)
def test_named_configs_have_the_published_number_of_parameters(name):
    def count(config) -> int:
        shapes = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
        return sum(math.prod(p.shape) for p in jax.tree.leaves(shapes))

    actual = models.CONFIGS[name]
    one, two = (count(dataclasses.replace(actual, num_layers=n)) for n in (1, 2))
    assert one + (actual.num_layers - 1) * (two - one) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported.*NTK"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'linear' needs 'factor'"),
        ({"rope_theta": None}, "no rope_theta"),
        ({"use_sliding_window": True}, "use_sliding_window is true"),
        ({"model_type": "mistral"}, "'mistral' is not supported. Supported: llama, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rms_norm_eps": None}, "the key 'rms_norm_eps' is missing; it has .*vocab_size"),
        ({"tie_word_embeddings": None}, "'tie_word_embeddings' is missing"),
        ({"num_key_value_heads": 3}, "2 query heads cannot share 3"),
        ({"head_dim": 7}, "must be even, found 7"),
    ],
)
def test_what_does_not_run_is_refused_by_name(change, error):
    with pytest.raises(ValueError, match=error):
        hf_config.from_hf(HF | change)


def test_nothing_of_a_config_file_is_lost():
    actual = hf_config.from_hf(HF | {"model_type": "qwen3", "head_dim": 32, "vocab_size": 99})
    assert (actual.head_dim, actual.vocab_size, actual.dim, actual.num_groups) == (32, 99, 16, 2)
    assert actual.qk_norm and not actual.qkv_bias and actual.norm_eps == 1e-5
    assert hf_config.from_hf(HF | {"model_type": "qwen2"}).qkv_bias
    assert hf_config.from_hf(HF).head_dim == 8
