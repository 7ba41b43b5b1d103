"""Collects pieces of this machine's documentation, for training: JSON lines of documents.

python -m launch.collect_docs --output=documents.jsonl
python -m launch.collect_docs --folders=manuals --everything --output=documents.jsonl

Their licences are those of what is installed: a use of one's own is fine, handing them on may not
be. `launch.write_questions` asks about them.
"""

import pathlib
import sys
import sysconfig

from absl import app, flags

from launch.common import errors, folders

flags.adopt_module_key_flags(errors)  # so that --help shows it

OUTPUT = flags.DEFINE_string("output", None, "The file to write, {id, text} a line.", required=True)
FOLDERS = flags.DEFINE_list(
    "folders",
    None,
    "Folders to read; default: Python's packages and standard library, /usr/share/doc and man.",
)
# As in kvpacket_jax.data.own.installed_docs; a test compares them.
KINDS = flags.DEFINE_multi_enum(
    "kinds",
    None,
    ["description", "code", "text", "manual", "changelog", "licence"],
    "Which pieces, given once for each kind; default: all. A description is a package's README.",
)
LIMIT = flags.DEFINE_integer(
    "limit", None, "Pieces, at most; default: 2500, with --everything all.", lower_bound=1
)
EVERYTHING = flags.DEFINE_bool(
    "everything",
    False,
    "For a folder of your own documents: every piece that is prose. Otherwise at most 4 of a file "
    "and 25 of a package or of files whose names begin alike, and one of those that begin alike.",
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the choice and the order.")

SHARED = ("/usr/share/doc", "/usr/share/man")  # where there are such folders


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs nothing of them.
    import json
    from collections import Counter

    from kvpacket_jax.data.own import installed_docs
    from kvpacket_jax.runtime import progress
    from models.disk.files import write_whole

    output = pathlib.Path(OUTPUT.value).expanduser()
    places, kinds = _places(), KINDS.value or installed_docs.KINDS
    with errors.in_one_line():
        folders.check_file("output", OUTPUT.value)
        with progress.step("Reading documentation"):
            limit = LIMIT.value or (sys.maxsize if EVERYTHING.value else 2500)
            pieces = installed_docs.collect(places, limit, SEED.value, kinds, EVERYTHING.value)
        if not pieces:
            raise ValueError(
                f"There is no English prose of the kinds {', '.join(kinds)} in "
                f"{', '.join(map(str, places))}: give other --folders or --kinds."
            )
        write_whole(output, "".join(f"{json.dumps(p)}\n" for p in pieces))
    counts = Counter(p["id"].split("/")[0] for p in pieces)
    words = sum(len(p["text"].split()) for p in pieces)
    print(f"{output}: {len(pieces):,} documents of {words:,} words")
    print(", ".join(f"{number} {kind}" for kind, number in counts.items()))


def _places() -> list[pathlib.Path]:
    if FOLDERS.value:
        return [pathlib.Path(f).expanduser() for f in FOLDERS.value]
    python = [pathlib.Path(sysconfig.get_paths()[k]) for k in ("purelib", "stdlib")]
    return python + [p for p in map(pathlib.Path, SHARED) if p.is_dir()]


if __name__ == "__main__":
    app.run(main)
