"""Imports an adapter that the authors of KV Packet released (.pt) as an orbax checkpoint.

python -m launch.import_adapter --input=llama_3_1_8b__mixture.pt --output=adapters/llama-mixture
"""

import os

from absl import app, flags

from launch.common import caches, errors

flags.adopt_module_key_flags(errors)  # so that --help shows it

INPUT = flags.DEFINE_string("input", None, "The .pt file.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", required=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    from kvpacket_jax.packets import adapter as adapter_lib
    from kvpacket_jax.packets import import_pt

    caches.quiet_logs()
    with errors.in_one_line():
        adapter, rest = import_pt.read_pt(INPUT.value)
        # Which checkpoint it was trained on is not in the file, so loading it for a model says so.
        metadata = {
            "model": None,
            "imported_from": os.path.basename(INPUT.value),
            "released_with": rest,
        }
        adapter_lib.save_adapter(OUTPUT.value, adapter, metadata)
    width = adapter.header.shape[1]
    print(f"{OUTPUT.value}: {adapter_lib.describe(adapter)}, of width {width}")


if __name__ == "__main__":
    app.run(main)
