"""Faults of a reader that goes wrong in every way that the harness counts, for its own test.

It imports little, for the harness starts a process anew after a hang and after a crash.
"""

import os
import pathlib
import time

from tests.support.faults import harness


def careless(folder: pathlib.Path, rng, number):
    """A reader that goes wrong in every way that is counted."""
    folder.mkdir()
    path, other = folder / "it", folder / "other"
    path.write_bytes(b"right")
    other.write_bytes(b"mine")

    def read():
        match path.read_bytes():
            case b"lost":
                other.unlink()
                return b"right"
            case b"traceback":
                raise KeyError("it")
            case b"hang":
                time.sleep(600)
            case b"crash":
                os.abort()
            case b"memory":
                return b"right" * (harness.MEMORY // 5 + 2**24)
            case b"unnamed":
                raise ValueError("a file is damaged")
            case b"refused":
                raise ValueError("it is damaged")
        return path.read_bytes()

    kinds = (b"wrong", b"lost", b"traceback", b"hang", b"crash", b"memory", b"unnamed", b"refused")
    for data in kinds[:number]:
        attempt = harness.in_file(
            path, data, read, lambda found: len(found) > 5 or found == b"right"
        )
        # No slow machine takes that long for the others.
        yield attempt._replace(seconds=3.0 if data == b"hang" else 120.0)
