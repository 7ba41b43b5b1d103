"""Runs the members of a sweep one after another; run again, it skips those that are done.

python -m launch.sweep --config=configs/sweep_documents.py --workdir=runs/documents --dry_run
python -m launch.sweep --config=configs/sweep_ratios.py:niah --workdir=runs/ratios_niah
    --override=evaluate.adapter=runs/mine/adapter (on one line)
"""

import sys

from absl import app, flags

from launch.common import caches, configs, errors, folders

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(errors)

CONFIG = flags.DEFINE_string("config", None, "The sweep's file, configs/sweep_….py or FILE:NAME.")
WORKDIR = flags.DEFINE_string("workdir", None, "Each member has a folder of its name in it.")
OVERRIDE = flags.DEFINE_multi_string(
    "override", [], "PROGRAM.field=value for all members, as evaluate.num_samples=20."
)
SHARD = flags.DEFINE_string("shard", "0/1", "i/n: every n-th member from the i-th, i from 0.")
SLURM = flags.DEFINE_bool("slurm", False, "Submits a job array through submitit, and returns.")
SLURM_OPTIONS = flags.DEFINE_string(
    "slurm_options", "", "name=value,… for submitit, as timeout_min=600,gpus_per_node=1."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Prints each member's commands and runs nothing.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    from kvpacket_jax import sweep
    from kvpacket_jax.runtime import progress

    passed_on = (caches.CACHE_DIR, caches.COMPILATION_CACHE)
    other = [f"--{f.name}={f.value}" for f in passed_on if f.value]
    other += ["--traceback"] * errors.TRACEBACK.value
    with errors.in_one_line():
        workdir = folders.local("workdir", WORKDIR.value)
        config = configs.find(CONFIG.value)
        members = sweep.members(config, workdir, OVERRIDE.value, other)
        members = sweep.shard(members, SHARD.value)
        if DRY_RUN.value:
            print("\n".join(sweep.described(member) for member in members))
        elif SLURM.value:
            print("\n".join(sweep.submit(members, workdir / "slurm", SLURM_OPTIONS.value)))
        elif sweep.run_members(members, progress=progress.SHOWN):
            sys.exit(1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
