"""How a program ends on an error: with what was wrong; with --verbosity=1, with where as well."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from absl import logging

INTERRUPTED = 128 + signal.SIGINT  # the status that shells give
EXPECTED = (ValueError, TypeError, OSError, RuntimeError)


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Ends the program with an error's own words, or with nothing but a status after Ctrl-C."""
    try:
        yield
    except EXPECTED as error:
        sys.exit(f"\n{words(error)}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def words(error: Exception) -> str:
    """What is shown of an error in place of its traceback; raises it with --verbosity=1."""
    if logging.level_debug():
        raise error
    # Likely a mistake in the code, of a new method say.
    if isinstance(error, TypeError):
        return f"{error}\n--verbosity=1 shows where."
    return str(error)
