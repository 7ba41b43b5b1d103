"""The flags of the programs that build a store's packets and answer from them: what made them."""

import pathlib
from collections.abc import Sequence

from absl import flags

from launch.common import devices, stores

flags.adopt_module_key_flags(stores)  # so that --help shows them

MODEL = flags.DEFINE_string(
    "model",
    "qwen2.5-coder-0.5b",
    "A name, a hub id, a folder or a .gguf file; launch.answer takes the store's unless given, as "
    "with the other flags here.",
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    "auto",
    ["auto", "float32", "bfloat16"],
    "auto: that of the store's packets, else the faster one.",
)
ADAPTER = flags.DEFINE_string(
    "adapter",
    None,
    "A folder, a shipped name, primer or none; default: the model's, else primer.",
)
PRIMER = flags.DEFINE_string(
    "primer",
    None,
    "What packets are built after: a file (of one text, or .jsonl as --input), corpus:3 (three "
    "documents of the corpus) or similar:3 (for each document the three most similar ones); "
    "default: the adapter's own.",
)
COMPRESS = flags.DEFINE_string(
    "compress",
    None,
    "What makes packets smaller: knorm, streaming, snapkv, zeromerge, expected_attention, kvzip or "
    "kv_distill, with settings as in snapkv/window=16/kernel=3; default: nothing.",
)
KEEP = flags.DEFINE_float(
    "keep",
    None,
    "The share of a packet's slots that stays; default: the compressor's, one half, which costs a "
    "fifth of F1 or more: try .9.",
)
SHARED_LAYERS = flags.DEFINE_string(
    "shared_layers",
    "",
    "As 19:23: these layers, to 22, take the attention weights of layer 18 and cache no keys. It "
    "is another model, with packets and adapters of its own.",
)
OTHER_MODEL = flags.DEFINE_bool(
    "other_model", False, "Use the adapter though it was trained for another model of that width."
)
TEMPLATE = flags.DEFINE_string(
    "template",
    "chat",
    "The wording around the texts: chat or completion; chat_reasoning and completion_reasoning let "
    "the model reason before it answers.",
)
PREAMBLE = flags.DEFINE_string("preamble", None, "The instruction; default: the usual one.")


def default_to_store(ids: Sequence[str], bare: bool, any_way: bool) -> str:
    """Sets defaults of flags that were not given: what the store's documents were built with.

    What is loaded so must be what packets were made with, or they are refused.

    Args:
      bare: packets without an adapter are asked for.
      any_way: whichever of several builds will do.

    Returns:
      What is to be said of it: defaults that are not the usual ones, and several builds; or "".

    Raises ValueError for a compressor as `compress.make`, and as `ways.built_with` and
      `loading.check_found`.
    """
    # Imported here: --help needs no jax.
    from kvpacket_jax import adapters, compress
    from kvpacket_jax.serve import loading
    from kvpacket_jax.storage import ways

    named = (MODEL, SHARED_LAYERS, ADAPTER, PRIMER, DTYPE, TEMPLATE)
    asked = {flag.name: flag.value for flag in named if flag.present}
    if asked.get("dtype") == "auto":
        del asked["dtype"]
    if COMPRESS.present or KEEP.present:
        compressor = compress.make(COMPRESS.value, KEEP.value)
        asked["compress"] = compress.shortened(compressor.label) if compressor else ""
    if bare:
        if asked.get("adapter", adapters.NONE) != adapters.NONE or asked.get("primer"):
            raise ValueError(
                "no_recompute reads packets without an adapter and without a primer: leave out "
                "--adapter and --primer, or --method."
            )
        asked["adapter"] = adapters.NONE
    found, several = ways.built_with(stores.folder(), ids, asked, any_way)
    usual = {flag: flags.FLAGS[flag].default for flag in found}
    usual["adapter"] = adapters.default_for(found.get("model", MODEL.value))
    new = {flag: value for flag, value in found.items() if value and flag not in asked}
    loading.check_found(new)
    for flag, value in new.items():
        flags.FLAGS.set_default(flag, value)
    said = [flag for flag, value in new.items() if value != usual[flag] and flag != "dtype"]
    lines = [f"As the documents were built: {ways.shown(new, said)}"] if said else []
    if several:
        lines.append(
            f"The documents were built in {len(several)} ways: {'; or '.join(several)}. Flags that "
            "are not given are as usual."
        )
    return "\n".join(lines)


def wording():
    """The `identity.Wording` of the store's texts; ValueError for an unknown template."""
    # Imported here: --help needs no jax.
    from kvpacket_jax.serve import identity

    return identity.wording(TEMPLATE.value, PREAMBLE.value)


def load(cache_dir: pathlib.Path, console=None):
    """The `loading.Loaded` of the flags: a model, and what its packets are made with.

    Args:
      console: as `progress.step` takes it.

    Raises as `compress.make`, `primers.parse` and `loading.load_for_store`.
    """
    from kvpacket_jax import compress
    from kvpacket_jax.runtime import progress
    from kvpacket_jax.serve import loading, primers

    compressor = compress.make(COMPRESS.value, KEEP.value)
    primer = primers.parse(PRIMER.value)
    with progress.step(f"Loading {MODEL.value}", console):
        return loading.load_for_store(
            MODEL.value,
            DTYPE.value,
            stores.folder(),
            cache_dir,
            ADAPTER.value,
            TEMPLATE.value,
            OTHER_MODEL.value,
            devices.MESH.value,
            primer,
            compressor,
            SHARED_LAYERS.value,
        )
