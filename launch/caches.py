"""The flags of what programs keep between runs: models, and what was compiled for them."""

import logging
import pathlib

from absl import flags
from absl import logging as absl_logging

CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Where models are kept; default: user's cache.")
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache_dir", None, "Keeps compiled programs; default: beside the models."
)


def use() -> pathlib.Path:
    """Sets jax's cache of programs as the flags say; the folder of the models."""
    # Imported here: --help needs no jax.
    import jax

    import models

    absl_logging.set_verbosity(absl_logging.WARNING)  # not each file that orbax reads
    logging.getLogger("jax").setLevel(logging.WARNING)  # not which backends are absent
    cache_dir = pathlib.Path(CACHE_DIR.value or models.default_cache_dir())
    compiled = COMPILATION_CACHE.value or str(cache_dir / "compiled")
    jax.config.update("jax_compilation_cache_dir", compiled)
    return cache_dir
