"""Trains an adapter by self-distillation; run again after a stop, it goes on where it was.

python -m launch.train --config=configs/train.py --workdir=runs/qwen2.5-coder-0.5b
python -m launch.train --mesh=data:2,model:4 --distributed --workdir=gs://bucket/run  # every host

--config=configs/train.py:smoke shows in some minutes that it runs, not that it learns. Fields one
would change: --config.model, .header, .trailer, .init, .num_steps, .batch_size, .mixture; all are
in the file.
"""

from absl import app, flags
from ml_collections import config_flags

from launch import caches, configs, devices, errors

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(devices)
flags.adopt_module_key_flags(errors)

with configs.in_one_line():
    CONFIG = config_flags.DEFINE_config_file(
        "config",
        configs.find("configs/train.py"),
        "What to train; any field as --config.field=value.",
    )
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


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    from kvpacket_jax.runtime import hosts, workdir
    from kvpacket_jax.train import loop

    cache_dir = caches.use(DISTRIBUTED.value)
    with errors.in_one_line():
        if DISTRIBUTED.value:
            hosts.join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        with workdir.locked(WORKDIR.value):
            loop.train(CONFIG.value, WORKDIR.value, cache_dir, devices.MESH.value)


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    configs.run(main)
