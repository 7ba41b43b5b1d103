"""What libraries log in programs: warnings."""

import logging

from absl import logging as absl_logging


def quiet() -> None:
    """Keeps out what orbax says of each file, and jax of the backends that are absent."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("jax").setLevel(logging.WARNING)
