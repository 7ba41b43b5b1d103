"""Trains an adapter by self-distillation; run again after a stop, it goes on where it was.

python -m launch.train --config=configs/train.py --workdir=runs/qwen2.5-coder-0.5b
python -m launch.train --mesh=data:2,model:4 --config.batch_size=2 --distributed \
    --workdir=gs://bucket/run  # on every host

--config=configs/train.py:jsonl --config.path=documents.jsonl trains on documents of your own, lines
{"id": "…", "text": "…"}: the model writes questions about them first, to the workdir, as
launch.write_questions does (--config.corpus=FILE trains on what that wrote). Three documents in
five are trained on, one in five is for validation, one for launch.evaluate.
--config=configs/train.py:smoke shows in some minutes that it runs, not that it learns. Fields one
would change: --config.model, .init, .num_steps, .finish, .writer_rank, .microbatches,
.batch_size, .mixture; all are in the file.
"""

import pathlib

from absl import app, flags

from launch.common import caches, configs, devices, errors, folders

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(devices)
flags.adopt_module_key_flags(errors)

CONFIG = configs.define("configs/train.py", "What to train; any field as --config.field=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Checkpoints, metrics and the adapter go here.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Many hosts train together: the same command on each, with a --workdir that all of them see. "
    "Cloud TPU and Slurm say who they are; elsewhere the next three flags do.",
)
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process.")
PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train together.")
PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, counted from 0.")
LEAST = 25  # documents of one's own: those that are kept out for a test must make a set


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    from kvpacket_jax.runtime import hosts, workdir
    from kvpacket_jax.train import loop, setup

    cache_dir = caches.use(DISTRIBUTED.value)
    with errors.in_one_line():
        folders.check_named("workdir", WORKDIR.value)
        if DISTRIBUTED.value:
            hosts.join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        config = CONFIG.value
        with workdir.locked(WORKDIR.value, workdir.TRAIN):
            if "path" in config and not config.corpus:
                setup.check(config)  # before questions are written, which takes long
                config.corpus = _questions(config, cache_dir)
            loop.train(config, WORKDIR.value, cache_dir, devices.MESH.value)


def _questions(config, cache_dir) -> str:
    """The file of questions about a user's documents, in the workdir, written if it is not there.

    Raises ValueError without documents, and where many hosts would write it.
    """
    from launch.common import questions

    if not config.path:
        raise ValueError('Give your documents, lines {"id": "…", "text": "…"}: --config.path=FILE.')
    if DISTRIBUTED.value or "://" in WORKDIR.value:
        raise ValueError(
            "Questions are written by one process to a file of its own: run launch.write_questions "
            "on one host, then train with --config=configs/train.py:jsonl --config.corpus=FILE."
        )
    workdir = pathlib.Path(WORKDIR.value).expanduser()
    output = workdir / "questions.jsonl"
    source = pathlib.Path(config.path).expanduser()
    steps = (workdir / "checkpoints").glob("*")
    begun = any(p.name.isdigit() for p in steps)  # on the questions that are there
    questions.write(
        source, output, config.model, config.dtype, cache_dir, least=LEAST, may_add=not begun
    )
    return str(output)


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    configs.run(main)
