"""Answers questions about ten short documents from their cached packets, and shows what it costs.

python -m launch.demo [--model=qwen2.5-coder-0.5b] [--json=demo.json]
"""

from absl import app, flags

from launch.common import caches, devices, errors, folders

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(devices)
flags.adopt_module_key_flags(errors)

SHOWN = ("full_recompute", "kv_packet", "no_recompute", "no_cache")

MODEL = flags.DEFINE_string(
    "model",
    "qwen2.5-coder-0.5b",
    "A demo model (qwen2.5-coder-0.5b, qwen2.5-coder-1.5b, smollm2-135m), a Hugging Face hub id, a "
    "folder, or a .gguf file.",
)
DTYPE = flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "The weights' dtype.")
ADAPTER = flags.DEFINE_string(
    "adapter", None, "A folder, a shipped name, primer, or none; default: the model's, else primer."
)
OTHER_MODEL = flags.DEFINE_bool(
    "other_model", False, "Use the adapter though it was trained for another model of that width."
)
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 32, "The longest answer.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "Also writes the rows to this file.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    import models
    from kvpacket_jax import adapters
    from kvpacket_jax.data import TEMPLATES, demo
    from kvpacket_jax.data.order import best_first
    from kvpacket_jax.evaluate import compare
    from kvpacket_jax.measure.machine import measure_machine
    from kvpacket_jax.methods import settings
    from kvpacket_jax.packets import adapter as adapter_lib
    from kvpacket_jax.report import costs, story, tables
    from kvpacket_jax.runtime import progress
    from models import sharding

    cache_dir, show = caches.use(), progress.SHOWN
    example = demo.example()
    show.say(story.opening(example))
    with errors.in_one_line():
        folders.check_file("json", JSON.value)
        with show.step(f"Loading {MODEL.value}"):
            model = models.load_text_model(MODEL.value, DTYPE.value, cache_dir, devices.MESH.value)
            sharding.log_layout(model.config, model.params)
            adapter = adapters.choose(model, ADAPTER.value, other_model=OTHER_MODEL.value)
        with show.step("Measuring this machine"):
            machine = measure_machine(model.dtype, model.num_devices)
        parts = adapter_lib.describe(adapter) if adapter else "none"
        label = {"kv_packet": "kv_packet" if adapter else "kv_packet (no adapter)"}
        methods = {label.get(n, n): settings.make(n, adapter)[1] for n in SHOWN}
        comparison = compare.compare(
            model,
            methods,
            best_first(example),
            TEMPLATES["chat"],
            NEW_TOKENS.value,
            machine=machine,
            progress=show,
        )
    progress.console.print(tables.answer_table(comparison.replies), tables.method_table(comparison))
    progress.paragraph(tables.method_legend())
    progress.paragraph(costs.peak_share(comparison.costs[0], machine))
    progress.paragraph(story.conclusion(comparison, parts, label["kv_packet"]))
    show.say(f"\n{story.next_command(MODEL.value, MODEL.default)}")  # its lines unbroken
    if JSON.value:
        with errors.in_one_line():
            tables.write_json(JSON.value, comparison.rows(), machine)


if __name__ == "__main__":
    app.run(main)
