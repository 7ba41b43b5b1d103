"""The flag of the programs that take several adapters."""

from absl import flags

flags.disclaim_key_flags()  # a flag is the program's that calls `define`


def define(help: str) -> flags.FlagHolder:
    """A program's `--adapters`: one name or more, none of them empty."""
    holder = flags.DEFINE_list("adapters", None, help)
    flags.register_validator(
        holder,
        lambda names: names is None or (all(names) and len(names) > 0),
        "name one adapter or more, with commas.",
    )
    return holder
