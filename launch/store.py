"""Shows what a store of packets holds: documents, their tokens and bytes, model and adapter.

python -m launch.store ls --store=DIR
"""

import pathlib

from absl import app, flags

from launch import errors

flags.adopt_module_key_flags(errors)  # so that --help shows it

STORE = flags.DEFINE_string("store", None, "The folder of packets.", required=True)


def main(argv):
    if argv[1:] != ["ls"]:
        raise app.UsageError(f"Give one command, ls, not {' '.join(argv[1:]) or 'none'}.")
    # Imported here: --help needs no jax.
    from kvpacket_jax.runtime import progress
    from kvpacket_jax.serve import listing, store

    with errors.in_one_line():
        documents = store.contents(pathlib.Path(STORE.value).expanduser())
    progress.console.print(listing.table(documents))
    progress.SHOWN.say(listing.total(documents))


if __name__ == "__main__":
    app.run(main)
