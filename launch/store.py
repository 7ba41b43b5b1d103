"""Shows what a store of packets holds: documents, their tokens and bytes, model and adapter.

python -m launch.store ls --store=DIR

Ends with status 1 where anything is missing, damaged or not signed; a preamble is listed only then.
Of packets only the headers are read: launch.answer verifies every byte of those that it reads,
launch.build_packets of all.
"""

import sys

from absl import app, flags

from launch.common import errors, stores

flags.adopt_module_key_flags(errors)  # so that --help shows them
flags.adopt_module_key_flags(stores)


def main(argv):
    if argv[1:] != ["ls"]:
        raise app.UsageError(f"Give one command, ls, not {' '.join(argv[1:]) or 'none'}.")
    # Imported here: --help needs no jax.
    from kvpacket_jax.runtime import progress
    from kvpacket_jax.storage import listing, store

    with errors.in_one_line():
        documents = store.contents(stores.folder(), stores.key())
    progress.console.print(listing.table(documents))
    progress.SHOWN.say(listing.total(documents))
    sys.exit(1 if any(document.problem for document in documents) else 0)


if __name__ == "__main__":
    app.run(main)
