"""Runs every method on a data set and compares them; run again after a stop, it goes on.

python -m launch.evaluate --config=configs/evaluate.py:biography --workdir=runs/biography
"""

import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

from launch import caches, devices

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(devices)

CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/evaluate.py", "What to evaluate; any field as --config.field=value."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Answers, times and results.json go here.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    from kvpacket_jax import evaluate, report

    cache_dir = caches.use()
    try:
        results = evaluate.evaluate(
            CONFIG.value, WORKDIR.value, cache_dir, devices.MESH.value, report.step, report.track
        )
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        sys.exit(f"\n{error}")
    report.console.print(report.quality_table(results), report.cost_table(results))
    report.console.print(f"{pathlib.Path(WORKDIR.value) / 'results.json'}")


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    app.run(main)
