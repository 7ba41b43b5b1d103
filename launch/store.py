"""Shows what a store of packets holds, verifies it, and removes documents.

python -m launch.store ls --store=DIR                       each document, its tokens and bytes
python -m launch.store verify --store=DIR                   the same, every byte compared
python -m launch.store rm --store=DIR --documents=id1,id2   documents, in whatever ways built
python -m launch.store prune --store=DIR                    packets that no document refers to

ls reads of packets only the headers. It and verify end with status 1 where anything is missing,
damaged or not signed; a preamble is listed only then. A document that is built with a new text has
a new packet; its old one stays until prune or rm, which prunes too. Packets built with
--primer=corpus:3 or similar:3 keep what they read of a document that is removed. To remove takes
no key. No model is loaded.
"""

import sys

from absl import app, flags

from launch.common import errors, stores

flags.adopt_module_key_flags(errors)  # so that --help shows them
flags.adopt_module_key_flags(stores)

ACTIONS = ("ls", "verify", "rm", "prune")
DOCUMENTS = flags.DEFINE_list("documents", None, "Ids to remove; one with a comma in quotes.")


def main(argv):
    if len(argv) != 2 or argv[1] not in ACTIONS:
        given = " ".join(argv[1:]) or "none"
        raise app.UsageError(f"Give one of {', '.join(ACTIONS)}, not {given}.")
    action = argv[1]
    if (action == "rm") != bool(DOCUMENTS.value):
        raise app.UsageError("rm takes --documents=id1,id2, and nothing else does.")
    # Imported here: --help needs no jax.
    from kvpacket_jax.runtime import progress
    from kvpacket_jax.storage import contents, listing, removal

    documents = []
    with errors.in_one_line():
        folder = stores.folder()
        if action in ("ls", "verify"):
            every_byte = action == "verify"
            key = stores.key()
            documents = contents.read(folder, key, every_byte, progress.SHOWN)
            progress.console.print(listing.table(documents))
            if key is None and any(document.has_signature for document in documents):
                progress.paragraph(stores.UNCHECKED)
            progress.SHOWN.say(listing.total(documents, removal.superseded(folder), every_byte))
        elif action == "rm":
            progress.SHOWN.say(listing.removed(removal.remove(folder, DOCUMENTS.value)))
        else:
            progress.SHOWN.say(listing.removed(removal.prune(folder)))
    sys.exit(1 if any(document.problem for document in documents) else 0)


if __name__ == "__main__":
    app.run(main)
