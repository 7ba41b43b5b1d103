"""Will it fit? Training and answering compiled for a TPU slice that need not be there.

python -m launch.plan --config.model=random:llama-3.1-8b --topology=v5e:2x4 --mesh=data:2,model:4

Needs libtpu for --topology: `make plan` installs it in an environment of its own.
"""

import os

from absl import app, flags

from launch.common import configs, devices, errors

flags.adopt_module_key_flags(devices)  # so that --help shows them
flags.adopt_module_key_flags(errors)

CONFIG = configs.define(
    "configs/train.py", "Training; --config.model is random:NAME or a model's folder."
)
TOPOLOGY = flags.DEFINE_string("topology", None, "v5e:2x4, …; default: the devices at hand.")
DOCUMENTS = flags.DEFINE_string("documents", "8x1024", "Number x tokens.")
PREAMBLE = flags.DEFINE_integer("preamble", 16, "Tokens before the documents.", lower_bound=0)
QUERY = flags.DEFINE_integer("query", 64, "Tokens of the query.", lower_bound=1)
ANSWER = flags.DEFINE_integer("answer", 64, "Tokens of the answer.", lower_bound=1)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    if TOPOLOGY.value:
        from kvpacket_jax.plan import topologies

        with errors.in_one_line():
            os.environ.update(topologies.environment(TOPOLOGY.value))  # before jax is imported
    from kvpacket_jax.plan import fit
    from kvpacket_jax.runtime import progress

    with errors.in_one_line():
        rows = fit.plan(
            CONFIG.value,
            TOPOLOGY.value,
            devices.MESH.value,
            fit.work(DOCUMENTS.value, PREAMBLE.value, QUERY.value, ANSWER.value),
            progress.SHOWN,
        )
    progress.console.print(*fit.tables(rows))
    for row in rows:
        progress.console.print(fit.verdict(row), highlight=False)


if __name__ == "__main__":
    configs.run(main)
