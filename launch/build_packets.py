"""Caches a corpus of documents as packets on disk; run again after a stop, it goes on.

python -m launch.build_packets --model=qwen2.5-coder-0.5b --input=docs.jsonl --store=DIR

A line of the input is {"id": "…", "text": "…"}. Independent processes can build one folder, each
its part of the corpus: --shard=0/4, 1/4, 2/4 and 3/4.
"""

import pathlib

from absl import app, flags

from launch.common import caches, devices, errors, serving, stores

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(devices)
flags.adopt_module_key_flags(errors)
flags.adopt_module_key_flags(serving)

INPUT = flags.DEFINE_string("input", None, "JSON lines of documents.", required=True)
SHARD = flags.DEFINE_string("shard", "0/1", "i/n: the i-th of n parts, counted from 0.")
ON_ERROR = flags.DEFINE_enum(
    "on_error", "stop", ["stop", "skip"], "What to do at a line that is no document."
)
OPENINGS = flags.DEFINE_bool(
    "openings",
    True,
    "A second packet of each document, for requests that it comes first in: nothing is lost of it "
    "then. --noopenings halves the store.",
)
BATCH_TOKENS = flags.DEFINE_integer(
    "batch_tokens", 2048, "Computed at once; a large accelerator takes more.", lower_bound=1
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    from kvpacket_jax.runtime import progress, shards
    from kvpacket_jax.serve import build, corpus
    from kvpacket_jax.serve.progress import BuildProgress
    from kvpacket_jax.storage import store

    consequence = "Nothing was built. --on_error=skip leaves such lines out."
    on_bad = print if ON_ERROR.value == "skip" else corpus.refusing(consequence)
    cache_dir = caches.use()
    with errors.in_one_line("Stopped. What was built stays: the same command goes on."):
        # First what needs no model: loading one takes a while.
        wording = serving.wording()
        shard, key, folder = shards.parse(SHARD.value), stores.key(), stores.folder()
        store.check_no_file(folder)
        documents = corpus.read_file(pathlib.Path(INPUT.value).expanduser(), on_bad)
        loaded = serving.load(cache_dir)
        with progress.step(f"Tokenising documents: {len(documents):,}"):
            parts = build.plan(
                loaded.model,
                loaded.adapter,
                wording,
                documents,
                shard,
                batch_tokens=BATCH_TOKENS.value,
                on_bad=on_bad,
                adapter_name=loaded.adapter_name,
                choice=loaded.choice,
                compressor=loaded.compressor,
                openings=OPENINGS.value,
            )
        with BuildProgress(parts) as bar:
            build.build(loaded.model, parts, folder, on_batch=bar.add, on_damaged=bar.say, key=key)
    print(bar.summary())


if __name__ == "__main__":
    app.run(main)
