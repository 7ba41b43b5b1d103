"""Programs that take a config: a mistake in `--config` ends in one line, not in a traceback."""

import contextlib
import sys
from collections.abc import Iterator

from absl import app, flags
from ml_collections import ConfigDict, config_flags


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Ends the program where a config has no such field: around its definition and its parsing."""
    try:
        yield
    except (AttributeError, KeyError) as error:  # ml_collections says so
        said = error
        while said.args and isinstance(said.args[0], Exception):
            said = said.args[0]
        sys.exit(
            f"FATAL Flags parsing error: no such field of the config: {said.args[0]}\n"
            "Its fields are in the file that --config names."
        )


def run(main) -> None:
    """app.run for a program with a `--config`."""
    app.run(main, flags_parser=_parse)


def _parse(argv):
    try:
        with in_one_line():
            rest = flags.FLAGS(argv)
    except flags.Error as error:
        *trace, last = str(error).strip().splitlines()
        if not any("parsing config file" in line for line in trace):
            return app.parse_flags_with_usage(argv)  # says it, and how to get help
        sys.exit(last.strip().removeprefix("ValueError: "))
    config = flags.FLAGS["config"]
    if not isinstance(config.value, ConfigDict):  # it raises when a field is read
        sys.exit(f"There is no config file {config_flags.get_config_filename(config)}.")
    return rest
