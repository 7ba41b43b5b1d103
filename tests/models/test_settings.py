"""Settings of foreign files: understood completely, or refused by name."""

import json

import pytest
import transformers

import models
from models import rope
from models.checkpoint import hf_config
from tests.support.configs import HF

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def read(**changes):
    return hf_config.from_hf({**HF, **changes}, "m/config.json")


def their_rope(tmp_path, hf):
    (tmp_path / "config.json").write_text(json.dumps(hf))
    return transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_two_spellings_are_merged_as_transformers_does(tmp_path, model_type):
    hf = {k: v for k, v in HF.items() if k != "rope_theta"} | {"model_type": model_type}
    hf |= {"rope_parameters": PLAIN, "rope_scaling": YARN}
    theirs, ours = their_rope(tmp_path, hf), hf_config.from_hf(hf).rope
    assert isinstance(ours, rope.YarnRope) and theirs["rope_type"] == "yarn"
    assert (ours.theta, ours.factor) == (theirs["rope_theta"], theirs["factor"])
    assert ours.original_max_positions == theirs["original_max_position_embeddings"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"rope_theta": 5e5, "rope_parameters": PLAIN}, "rope_theta.* at the top level and 10000"),
        (
            {
                "rope_theta": None,
                "rope_scaling": YARN,
                "rope_parameters": PLAIN | {"rope_theta": 1e6},
            },
            "rope_theta 1000000.0 other programs would not read",
        ),
        (
            {"rope_scaling": YARN, "rope_parameters": YARN | {"factor": 2.0}},
            "'factor' is 2.0 at ro",
        ),
        ({"rope_scaling": YARN, "rope_parameters": YARN | {"beta_fast": 2.0}}, "say more"),
        ({"rope_scaling": YARN | {"type": "linear"}}, "rope_type .yarn. and type .linear."),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 7}, "is 7 at the top level"),
        ({"rope_scaling": YARN | {"mrope_section": [1, 2]}}, "'mrope_section' is .*not known"),
        ({"rope_scaling": {"factor": 4.0}}, "'factor' is 4.0. This setting is not known"),
        ({"rope_parameters": {"full_attention": PLAIN}}, "'full_attention'"),
        ({"rope_scaling": "yarn"}, "m/config.json: 'rope_scaling' must be an object, found .yarn"),
        ({"rope_scaling": 2}, "'rope_scaling' must be an object, found 2"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "RoPE type .* is not supported"),
        ({"rope_scaling": YARN | {"factor": float("nan")}}, "'factor' must be a number above 0"),
        ({"rope_scaling": YARN | {"factor": "4"}}, "'factor' must be a number above 0.*found .4"),
        (
            {"rope_scaling": YARN | {"factor": 1e9}},
            "context of .* positions is too long; the most is",
        ),
        ({"rope_scaling": YARN | {"beta_fast": 1.0}}, r"beta_slow \(1.0\) below beta_fast \(1.0\)"),
        ({"rope_theta": -1.0}, "'rope_theta' must be a number above 0"),
        ({"rope_theta": True}, "'rope_theta' must be a number above 0"),
        ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is 0.5.*only 1"),
        ({"rotary_dim": 4}, "'rotary_dim' is 4. This setting is not known here"),
        ({"rope_interleaved": True}, "'rope_interleaved' is true.*only false"),
        ({"use_mrope": True}, "'use_mrope'"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ({"attention_multiplier": 0.5}, "attention_multiplier"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"layer_types": 3}, "layer_types"),
        # What transformers' masks, caches and layers ask of any config.
        ({"is_causal": False}, "'is_causal' is false, which is not supported, only true"),
        ({"is_causal": 0}, "'is_causal' is 0"),
        ({"is_encoder_decoder": True}, "'is_encoder_decoder' is true"),
        ({"use_bidirectional": True}, "use_bidirectional"),
        ({"per_layer_config": {"0": {"rms_norm_eps": 1.0}}}, "per_layer_config"),
        ({"kv_sharing_modes": ["own", "reuse"]}, "kv_sharing_modes"),
        ({"attention_chunk_size": 64}, "attention_chunk_size"),
        ({"auto_map": {"AutoModel": "own.Model"}}, "auto_map"),
        ({"sliding_window": 64}, "sliding_window is 64, but layers here attend to all positions"),
        ({"use_sliding_window": "no"}, "'use_sliding_window' must be true or false"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights are read from GGUF"),
        ({"quantization": {"bits": 4}}, "quantised weights are read from GGUF"),
        ({"stop_strings": ["\n"]}, "stop_strings"),
        ({"eor_token_id": 2}, "'eor_token_id' is 2. This setting is not known"),  # once eos
        ({"hidden_size": "32"}, "m/config.json: 'hidden_size' must be an integer from 1 .*32"),
        ({"hidden_size": True}, "'hidden_size' must be an integer"),
        ({"num_hidden_layers": 10**6}, "'num_hidden_layers' must be an integer from 1 to 1,024"),
        ({"num_hidden_layers": -1}, "'num_hidden_layers' must be an integer"),
        ({"head_dim": 10**9}, "'head_dim' must be an integer from 1 to 512"),
        ({"max_position_embeddings": 10**12}, "'max_position_embeddings' must be an integer"),
        ({"rms_norm_eps": 2**70}, "'rms_norm_eps' must be a number above 0, at most 1"),
        ({"rope_theta": 2**70}, "'rope_theta' must be a number"),
        ({"rms_norm_eps": "1e-5"}, "'rms_norm_eps' must be a number"),
        ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings' must be true or false"),
        ({"model_type": ["llama"]}, "model_type"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(changes, error):
    with pytest.raises(ValueError, match=error):
        read(**changes)


def test_what_changes_nothing_is_accepted():
    plain = read()
    assert plain == read(
        partial_rotary_factor=1.0,
        rope_interleaved=False,
        use_mrope=False,
        is_causal=True,
        is_encoder_decoder=False,
        attention_dropout=0.1,
        sliding_window=4096,
        max_window_layers=2,
        layer_types=["full_attention"] * 2,
        attn_logit_softcapping=None,
        rope_scaling={"rope_type": "default"},
        transformers_version="5.23.0",
    )
    assert plain == read(rope_theta=None, rope_parameters=PLAIN)
    assert plain == read(rope_theta=None, rope_parameters=PLAIN | {"type": "default"})


@pytest.mark.parametrize("kind", ["LlamaConfig", "Qwen2Config", "Qwen3Config"])
def test_configs_as_transformers_writes_them_are_read(tmp_path, kind):
    theirs = getattr(transformers, kind)(tie_word_embeddings=True, rope_parameters=PLAIN | YARN)
    theirs.save_pretrained(tmp_path)
    assert hf_config.read(tmp_path / "config.json").rope.theta == 10000.0


# As published, with all that changes nothing.
PUBLISHED = {
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0.dev0",
        "use_cache": True,
        "vocab_size": 128256,
    },
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
        "use_cache": True,
        "vocab_size": 49152,
    },
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": 896,
        "initializer_range": 0.02,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_as_published_are_read(name):
    assert hf_config.from_hf(PUBLISHED[name]) == models.CONFIGS[name]
