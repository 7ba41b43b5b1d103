"""What one request costs with each method: time to first token, FLOPs, bytes, memory, the floor.

python -m launch.cost
python -m launch.cost --config=configs/cost.py:8b --config.methods="('kv_packet','a3:ratio=0.3')"
python -m launch.cost --config=configs/cost.py:gpu --json=cost.json --figure=cost.svg

Where torch is installed (.venv/bin/pip install torch), the same model in transformers is timed
beside it, on the CPU.
Fields one would change: --config.model, .methods, .documents=8x1024, .query, .tier=host, .runs;
all are in the file.
"""

from absl import app, flags

from launch.common import caches, configs, devices, errors, folders

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(devices)
flags.adopt_module_key_flags(errors)

CONFIG = configs.define("configs/cost.py", "What to measure; any field as --config.field=value.")
JSON = flags.DEFINE_string("json", None, "Also writes the rows to this file, every run in them.")
FIGURE = flags.DEFINE_string(
    "figure",
    None,
    "Also draws TTFT by cached tokens, of several points, as they come: an SVG file.",
)
PROFILE_DIR = flags.DEFINE_string("profile_dir", None, "Writes a jax profiler trace here.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    import pathlib

    from kvpacket_jax.measure import point
    from kvpacket_jax.report import cost_points, costs, tables
    from kvpacket_jax.runtime import progress
    from models.disk.files import write_whole

    if FIGURE.value and "/" not in CONFIG.value.documents:
        raise app.UsageError("--figure draws several points: --config.documents=4x256/16x256.")
    cache_dir = caches.use()
    measured: list[point.PointCosts] = []
    with errors.in_one_line():
        folders.check_file("json", JSON.value)
        folders.check_file("figure", FIGURE.value, ".svg")
        for one in point.run(
            CONFIG.value, cache_dir, devices.MESH.value, PROFILE_DIR.value, progress.SHOWN
        ):
            measured.append(one)
            progress.console.print(*costs.tables(one.rows))
            progress.paragraph(costs.request_line(one.rows, one.request, one.model, one.batch))
            progress.paragraph(costs.decoding_line(one.rows, one.decoding))
            if one.beside:
                progress.console.print(costs.beside_table(one.beside))
            if JSON.value:  # as they come: a later point may not fit
                tables.write_json(JSON.value, cost_points.records(measured), one.machine)
            if FIGURE.value:
                path = pathlib.Path(FIGURE.value).expanduser()
                write_whole(path, cost_points.figure(measured))
    progress.paragraph(costs.legend(measured[0].rows))
    progress.paragraph(costs.machine_line(measured[0].machine))
    if len(measured) > 1:
        progress.console.print(cost_points.table(measured))


if __name__ == "__main__":
    configs.run(main)
