"""Tables of settings: each that a file has is read, known to change nothing, or refused by name.

A key that no table has is refused if it sounds like one that changes what is computed.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from models.foreign.json_file import brief


@dataclasses.dataclass(frozen=True)
class Table:
    """The keys of one kind of file. A key whose value is null counts as absent."""

    read: str  # keys that are read, separated by blanks
    harmless: str  # keys that change nothing in what is computed here
    only: Mapping[str, tuple[Any, ...]]  # keys with the values that change nothing
    watched: str  # a regular expression: other keys that it finds are refused

    def check(self, source: Any, settings: Mapping[str, Any], prefix: str = "") -> None:
        """Raises ValueError, naming `source` and the key, for a setting that is not understood.

        `prefix` is what the file writes before the keys of `settings`.
        """
        known = {*self.read.split(), *self.harmless.split()}
        for key, value in settings.items():
            if value is None or key in known:
                continue
            found = f"{source}: {prefix + key!r} is {brief(value)}"
            if key in self.only:
                # 1 == True, but a switch is no number.
                if not [v for v in self.only[key] if v == value and type(v) is type(value)]:
                    fine = " or ".join(map(brief, (*self.only[key], None)))
                    raise ValueError(f"{found}, which is not supported, only {fine}.")
            elif re.search(self.watched, key):
                raise ValueError(
                    f"{found}. This setting is not known here and may change what the model "
                    "computes. Remove it if the model runs without it."
                )


CONFIG = Table(
    read="""
      hidden_act attention_bias mlp_bias use_sliding_window layer_types rope_theta rope_scaling
      rope_parameters original_max_position_embeddings max_position_embeddings head_dim
      num_attention_heads num_key_value_heads rms_norm_eps tie_word_embeddings eos_token_id""",
    # Of training, of other programs' kernels, of what is shown, or of attention over windows that
    # use_sliding_window leaves off.
    harmless="""
      attention_dropout attention_probs_dropout_prob attn_pdrop hidden_dropout sliding_window
      max_window_layers attn_implementation _attn_implementation _attn_implementation_autoset
      _attn_implementation_internal use_flash_attn _flash_attn_2_enabled output_attentions
      forced_eos_token_id cross_attention_hidden_size max_sequence_length bos_token_id pad_token_id
      unk_token_id sep_token_id cls_token_id decoder_start_token_id forced_bos_token_id""",
    only={
        "is_causal": (True,),  # false lets every token see all, as in models of embeddings
        "is_encoder_decoder": (False,),
        "rope_interleaved": (False,),
        "use_mrope": (False,),
        "partial_rotary_factor": (1, 1.0),
        "rotary_pct": (1, 1.0),
        "add_cross_attention": (False,),
        "pruned_heads": ({},),
        "use_bias": (False,),
        "bias": (False,),
        "use_qk_norm": (False,),
        "stop_strings": ([],),
        "num_experts": (0,),
        "num_local_experts": (0, 1),
        "embedding_multiplier": (1, 1.0),
        "residual_multiplier": (1, 1.0),
        "logits_scaling": (1, 1.0),
    },
    watched=(
        r"(?i)rope|rotary|position|quant|compress|bits|attention|attn|window|eos|stop|softcap|scal"
        r"|multiplier|temperature|bias|norm|head|layer_type|alibi|expert|moe|act(_fn|ivation)|embed"
        # Who sees whom, layers apart from the others, and a program of the model's own.
        r"|causal|mask|direction|per_layer|shar(ed|ing)|clip|auto_map|token_id"
    ),
)
GENERATION = Table(
    read="eos_token_id",
    # Of a length that is never reached, or of where a sequence begins.
    harmless="""
      forced_eos_token_id eos_token add_eos_token bos_token_id pad_token_id unk_token_id
      sep_token_id cls_token_id mask_token_id decoder_start_token_id forced_bos_token_id""",
    only={"stop_strings": ([],), "use_mrope": (False,), "stop_token_ids": ([],)},
    watched=r"(?i)eos|stop|end_of|quant|token_id",
)
TOKENIZER = Table(
    read="eos_token eos_token_id",
    # How other programs add it to what they encode; here nothing is added.
    harmless="add_eos_token",
    only={"stop_strings": ([],), "stop_words": ([],), "stop_tokens": ([],)},
    watched=r"(?i)eos|stop|eot|end_of",
)
# Under the name of the architecture.
GGUF_MODEL = Table(
    read="""
      block_count context_length embedding_length feed_forward_length attention.head_count
      attention.head_count_kv attention.key_length attention.value_length
      attention.layer_norm_rms_epsilon rope.freq_base rope.dimension_count rope.scaling.type
      rope.scaling.factor rope.scaling.original_context_length rope.scaling.yarn_beta_fast
      rope.scaling.yarn_beta_slow vocab_size""",
    harmless="rope.scaling.finetuned",
    only={
        "expert_count": (0,),
        "expert_used_count": (0,),
        "attention.causal": (True,),
        "use_parallel_residual": (False,),
        "attention.sliding_window": (0,),
        "rope.scale_linear": (1.0,),
        "rope.scaling.attn_factor": (1.0,),
        "tensor_data_layout": ("reference", "Meta AI original pth"),
    },
    watched="",
)
GGUF_TOKENIZER = Table(
    read="eos_token_id eot_token_id eom_token_id",
    harmless="add_eos_token",
    only={},
    watched=r"(?i)eos|eot|eom|eog|stop",
)
