"""The flags of what programs keep between runs: models, and what was compiled for them."""

import logging
import os
import pathlib

from absl import flags
from absl import logging as absl_logging

CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Where models are kept; default: user's cache.")
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache_dir",
    None,
    "Keeps compiled programs; default: JAX_COMPILATION_CACHE_DIR, else beside the models, but "
    "nowhere with --distributed.",
)


def use(distributed: bool = False) -> pathlib.Path:
    """Sets jax's cache of programs as the flags say; the folder of the models."""
    # Imported here: --help needs no jax.
    import jax

    import models
    from kvpacket_jax.runtime import programs

    quiet_logs()
    cache_dir = pathlib.Path(CACHE_DIR.value or models.default_cache_dir()).expanduser()
    if COMPILATION_CACHE.value:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(COMPILATION_CACHE.value))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    elif not distributed:  # with folders of their own, one host might find what others compile
        programs.keep(cache_dir)
    return cache_dir


def quiet_logs() -> None:
    """Keeps out what orbax logs of files, jax of backends that are absent, matplotlib of fonts."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in ("jax", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
