"""Trains an adapter by self-distillation; run again after a stop, it goes on where it was.

python -m launch.train --config=configs/train.py --workdir=runs/qwen2.5-coder-0.5b
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/train.py", "What to train; any field as --config.field=value."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Checkpoints, metrics and the adapter go here.")
CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Where models are kept.")
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache_dir", None, "Keeps compiled programs for the next run."
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    import jax

    from kvpacket_jax import train

    logging.set_verbosity(logging.WARNING)  # orbax tells of every step of every save
    if COMPILATION_CACHE.value:
        jax.config.update("jax_compilation_cache_dir", COMPILATION_CACHE.value)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        train.train(CONFIG.value, WORKDIR.value, CACHE_DIR.value)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        sys.exit(f"\n{error}")


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    app.run(main)
