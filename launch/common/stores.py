"""The flags of the programs that read or write a store: where it is, and its secret."""

import pathlib

from absl import flags

from launch.common import folders

STORE = flags.DEFINE_string("store", None, "The folder of packets.", required=True)
KEY_FILE = flags.DEFINE_string(
    "store_key_file",
    None,
    "A file with a secret that the store's entries are signed with and checked by; default: the "
    "environment's KVPACKET_STORE_KEY, if any.",
)
UNCHECKED = "Entries are signed; without --store_key_file the signatures are not checked."


def folder() -> pathlib.Path:
    """The store's. Raises ValueError as `folders.local`."""
    return folders.local(STORE.name, STORE.value)


def key() -> bytes | None:
    """The store's secret, if it has one; FileNotFoundError, ValueError as `store_key.read`."""
    # Imported here: --help needs no jax.
    from kvpacket_jax.storage import store_key

    return store_key.read(KEY_FILE.value)
