"""How a program ends on an error: with what was wrong, and with where only if asked."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from absl import flags

TRACEBACK = flags.DEFINE_bool("traceback", False, "Shows where in the code an error came from.")

EXPECTED = (ValueError, TypeError, OSError, RuntimeError)


@contextlib.contextmanager
def in_one_line(interrupted: str = "") -> Iterator[None]:
    """Ends the program with an error's own words, or with a status after Ctrl-C.

    Args:
      interrupted: what is said then.
    """
    try:
        yield
    except EXPECTED as error:
        sys.exit(f"\n{words(error)}")
    except KeyboardInterrupt:
        if interrupted:
            print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)  # the status that shells give


def words(error: Exception) -> str:
    """What is shown of an error in place of its traceback; raises it with --traceback."""
    if TRACEBACK.value:
        raise error
    # Likely a mistake in the code, of a new method say.
    if isinstance(error, TypeError):
        return f"{error}\n--traceback shows where."
    return str(error)
