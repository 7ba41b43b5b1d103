"""Programs that take a config: a mistake in `--config` ends in one line, not in a traceback."""

import contextlib
import pathlib
import sys
from collections.abc import Iterator

from absl import app, flags
from ml_collections import ConfigDict, config_flags

flags.disclaim_key_flags()  # a flag is the program's that calls `define`

PROJECT = pathlib.Path(__file__).parents[2]  # where the project's configs/ lies


def find(config: str) -> str:
    """The project's own config from whatever folder a program is started in.

    "configs/train.py:smoke" where there is such a file here or none in the project, else its path
    in the project.
    """
    file, colon, name = config.partition(":")
    own = PROJECT / file
    given = pathlib.Path(file).exists() or pathlib.Path(file).parts[:1] != ("configs",)
    return config if given or not own.exists() else f"{own}{colon}{name}"


def define(default: str, help: str) -> flags.FlagHolder:
    """A program's `--config`, the project's file `default` where none is given."""
    with _in_one_line():
        return config_flags.DEFINE_config_file("config", find(default), help)


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """Ends the program where a config has no such field: around its definition and its parsing."""
    try:
        yield
    except (AttributeError, KeyError) as error:  # as ml_collections raises
        cause = error
        while cause.args and isinstance(cause.args[0], Exception):
            cause = cause.args[0]
        sys.exit(
            f"FATAL Flags parsing error: no such field of the config: {cause.args[0]}\n"
            "Its fields are in the file that --config names."
        )


def run(main) -> None:
    """app.run for a program with a `--config`."""
    app.run(main, flags_parser=_parse)


def _parse(argv):
    start = "--config="
    argv = [start + find(a.removeprefix(start)) if a.startswith(start) else a for a in argv]
    try:
        with _in_one_line():
            rest = flags.FLAGS(argv)
    except flags.Error as error:
        *trace, last = str(error).strip().splitlines()
        if not any("parsing config file" in line for line in trace):
            return app.parse_flags_with_usage(argv)  # shows it, and how to get help
        sys.exit(last.strip().removeprefix("ValueError: "))
    config = flags.FLAGS["config"]
    if not isinstance(config.value, ConfigDict):  # it raises when a field is read
        sys.exit(f"There is no config file {config_flags.get_config_filename(config)}.")
    return rest
