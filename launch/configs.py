"""Programs that take a config: a mistyped field of it ends in one line, not in a traceback."""

import sys

from absl import app


def run(main) -> None:
    """app.run for a program with a `--config`."""
    app.run(main, flags_parser=_parse)


def _parse(argv):
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:  # ml_collections says so where there is no field
        said = error
        while said.args and isinstance(said.args[0], Exception):
            said = said.args[0]
        sys.exit(
            f"FATAL Flags parsing error: no such field of the config: {said.args[0]}\n"
            "Its fields are in the file that --config names."
        )
