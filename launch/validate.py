"""Compares adapters on the kinds of documents that a config of training validates on.

python -m launch.validate --adapters=primer,qwen2.5-coder-0.5b,runs/mine/adapter
python -m launch.validate --adapters=primer,runs/mine/adapter,runs/mine/adapter@0.6 \
    --config=configs/train.py

`@0.6` makes a writer's change 0.6 times as large. What a shipped adapter is like on test questions,
launch.card says.
"""

from absl import app, flags

from launch.common import adapter_list, caches, configs, devices, errors

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(devices)
flags.adopt_module_key_flags(errors)

CONFIG = configs.define(
    "configs/train.py", "Its model, template and validation; any field as --config.field=value."
)
ADAPTERS = adapter_list.define("Folders, shipped names, primer or none.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    from kvpacket_jax.runtime import progress
    from kvpacket_jax.train import compare

    cache_dir = caches.use()
    with errors.in_one_line():
        scores = compare.compare(
            CONFIG.value, ADAPTERS.value, cache_dir, devices.MESH.value, progress.SHOWN
        )
    progress.console.print(compare.table(scores))
    progress.paragraph(
        "KL of an answer, and the share of the same answers where the full context is right; in "
        "brackets the questions."
    )


if __name__ == "__main__":
    flags.mark_flag_as_required("adapters")
    configs.run(main)
