"""Lets a model write questions about documents and answer them; run again after a stop, it goes on.

python -m launch.write_questions --input=documents.jsonl --output=questions.jsonl

A line of the input is {"id": "…", "text": "…"}. The output can be trained on: data set `corpus`.
"""

import pathlib

from absl import app, flags

from launch import caches, errors

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
    "Tokens that documents are padded to, two programs each; longer ones get no questions.",
)
BATCH = flags.DEFINE_integer("batch", 4, "Documents computed at once.", lower_bound=1)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    import json

    import jax

    import models
    from kvpacket_jax import self_questions
    from kvpacket_jax.runtime import progress
    from kvpacket_jax.serve import corpus
    from models.files import append_line

    cache_dir = caches.use()
    source, output = (pathlib.Path(f.value).expanduser() for f in (INPUT, OUTPUT))
    with errors.in_one_line():
        documents = [(d.id, d.text) for d in corpus.read_file(source, _refuse)]
        done = self_questions.finished(output)
        left = [d for d in documents if d[0] not in done]
        with progress.step(f"Loading {MODEL.value}"):
            scan = jax.default_backend() != "cpu"
            model = models.load_text_model(MODEL.value, DTYPE.value, cache_dir, scan_layers=scan)
        writer = self_questions.Writer(model, BATCH.value, tuple(map(int, LENGTHS.value)))
        start = len(documents) - len(left)
        questions = tried = 0
        with progress.Bar("Questions", len(documents), start) as bar:
            for i, written in enumerate(writer.write(left), start + 1):
                append_line(output, json.dumps(written.record()))
                questions += len(written.questions)
                tried += written.tried
                bar.update(i, f"{i:,}/{len(documents):,} documents, {questions:,} questions")
    share = questions / max(tried, 1)
    print(f"{output}: {questions:,} questions about {len(left):,} documents, {share:.0%} of all")


def _refuse(message: str) -> None:
    raise ValueError(f"{message}\nNothing was written.")


if __name__ == "__main__":
    app.run(main)
