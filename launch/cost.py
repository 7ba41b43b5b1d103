"""What one request costs with each method: time to first token, FLOPs, bytes, memory, the floor.

python -m launch.cost
python -m launch.cost --config=configs/cost.py:8b --config.methods="('kv_packet','a3:ratio=0.3')"

Fields one would change: --config.model, .methods, .documents=8x1024, .query, .tier=host, .runs;
all are in the file.
"""

from absl import app, flags
from ml_collections import config_flags

from launch.common import caches, configs, devices, errors

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(devices)
flags.adopt_module_key_flags(errors)

with configs.in_one_line():
    CONFIG = config_flags.DEFINE_config_file(
        "config",
        configs.find("configs/cost.py"),
        "What to measure; any field as --config.field=value.",
    )
JSON = flags.DEFINE_string("json", None, "Also writes the rows to this file, every run in them.")
PROFILE_DIR = flags.DEFINE_string("profile_dir", None, "Writes a jax profiler trace here.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    import dataclasses

    from kvpacket_jax.measure import point
    from kvpacket_jax.report import costs, tables
    from kvpacket_jax.runtime import progress

    cache_dir = caches.use()
    with errors.in_one_line():
        rows, request, model, machine, decoding = point.run(
            CONFIG.value, cache_dir, devices.MESH.value, PROFILE_DIR.value, progress.SHOWN
        )
        if JSON.value:
            dicts = list(map(dataclasses.asdict, rows))
            dicts[0]["decoding"] = decoding._asdict()
            tables.write_json(JSON.value, dicts, machine)
    progress.console.print(*costs.tables(rows))
    progress.paragraph(costs.request_line(rows, request, model))
    progress.paragraph(costs.decoding_line(rows, decoding))
    progress.paragraph(costs.legend(rows))
    progress.paragraph(costs.machine_line(machine))


if __name__ == "__main__":
    configs.run(main)
