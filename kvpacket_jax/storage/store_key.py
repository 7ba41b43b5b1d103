"""The secret of a store that is shared with people who may not be trusted."""

import os
import pathlib

VARIABLE = "KVPACKET_STORE_KEY"
LEAST = 16  # bytes


def read(path: str | os.PathLike | None = None) -> bytes | None:
    """The key in a file, else the one in the environment, without blanks around it; None if none.

    Raises FileNotFoundError, and ValueError for a key that could be guessed.
    """
    if path is None:
        key, source = os.environ.get(VARIABLE, "").encode(), VARIABLE
        if not key:
            return None
    else:
        file = pathlib.Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"There is no file {file} with the key of the store.")
        key, source = file.read_bytes(), str(file)
    key = key.strip()
    if len(key) < LEAST:
        raise ValueError(
            f"The key in {source} has {len(key)} bytes, not at least {LEAST}. To make one: python "
            "-c 'import secrets; print(secrets.token_hex(32))'"
        )
    return key
