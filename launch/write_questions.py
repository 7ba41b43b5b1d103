"""Lets a model write questions about documents and answer them; run again after a stop, it goes on.

python -m launch.write_questions --input=documents.jsonl --output=questions.jsonl

A line of the input is {"id": "…", "text": "…"}. The output can be trained on: data set `corpus`.
"""

import pathlib

from absl import app, flags

from launch.common import caches, errors, folders

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(errors)

MODEL = flags.DEFINE_string("model", "qwen2.5-coder-0.5b", "As in launch.demo; a chat model.")
DTYPE = flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"], "auto: the faster one here."
)
INPUT = flags.DEFINE_string("input", None, "JSON lines of documents.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "The file to write or to go on with.", required=True)
LENGTHS = flags.DEFINE_list(
    "lengths",
    ["192", "320", "512"],
    "Tokens that documents are padded to, two programs each; of longer ones the beginning is read.",
)
flags.register_validator(
    LENGTHS,
    lambda lengths: lengths and all(n.isdecimal() and int(n) > 0 for n in lengths),
    "lengths are numbers of tokens, with commas: 192,320,512.",
)
BATCH = flags.DEFINE_integer("batch", 4, "Documents computed at once.", lower_bound=1)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    from launch.common import questions  # here: --help needs no jax

    cache_dir = caches.use()
    with errors.in_one_line():
        folders.check_file("output", OUTPUT.value)
        questions.write(
            pathlib.Path(INPUT.value).expanduser(),
            pathlib.Path(OUTPUT.value).expanduser(),
            MODEL.value,
            DTYPE.value,
            cache_dir,
            BATCH.value,
            tuple(map(int, LENGTHS.value)),
        )


if __name__ == "__main__":
    app.run(main)
