"""Real sizes on abstract arrays: a compiled program says what it needs, and nothing runs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import models
from kvpacket_jax.packets.prefill import prefill_program
from models import kv_cache
from models.transformer import Transformer, init_params


def abstract(name: str, dtype, **choices):
    """A module and its parameters' shapes."""
    config = dataclasses.replace(models.CONFIGS[name], **choices)
    params = jax.eval_shape(lambda key: init_params(config, key, dtype), jax.random.key(0))
    return Transformer(config), params


def int32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def lowered(module, params, context, rows: int, slots: int):
    return prefill_program.lower(
        module, params, context, int32(1, rows), int32(1), int32(), slots=slots
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_full_prefill_of_8192_tokens_keeps_its_temporaries_small(dtype):
    # The loop over layers, as it is served: what a scan needs says nothing about it.
    module, params = abstract("qwen2.5-0.5b", dtype)
    sizes = lowered(module, params, (), 8192, 8192 + 16).compile().memory_analysis()
    # All scores of one layer at once would be 14 * 8192 * 8192 * 4 = 3.8 GB.
    assert sizes.temp_size_in_bytes < 0.7e9
    config = module.config
    numbers = 2 * config.num_layers * (8192 + 16) * config.num_kv_heads * config.head_dim
    assert sizes.output_size_in_bytes >= dtype.dtype.itemsize * numbers  # the whole cache comes out


def test_the_8b_config_prefills_over_a_composed_context():
    module, params = abstract("llama-3.1-8b", jnp.bfloat16)
    context = jax.eval_shape(
        lambda: kv_cache.init(module.config, 1, 8 * 1024, jnp.bfloat16)  # 8 documents
    )
    program = lowered(module, params, (context,), 32, 512)
    logits, tail = program.out_info
    assert logits.shape == (1, 128_256) and logits.dtype == jnp.float32
    assert jax.tree.leaves(tail.k)[0].dtype == jnp.bfloat16
    sizes = program.compile().memory_analysis()
    numbers = 2 * 32 * 8192 * 8 * 128
    assert sizes.argument_size_in_bytes == pytest.approx(2 * (8.03e9 + numbers), rel=0.01)
    # XLA for CPUs lays keys, values and the query kernels out anew, all layers' at once: 2.2 GB. A
    # float32 copy of the weights would be 32 GB.
    assert sizes.temp_size_in_bytes < 2.5 * 2 * numbers
