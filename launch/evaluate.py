"""Compares methods on a data set; run again after a stop, it goes on.

python -m launch.evaluate --config=configs/evaluate.py:biography --workdir=runs/biography

What there is: biography, biography_10, biography_20, biography_64, niah, ruler, wikipedia,
everyday, own_docs, own_notes; with --config.dataset.options.folder=DIR musique and hotpot_qa (which
is downloaded without it); with --config.dataset.options.path=FILE corpus, what
launch.write_questions wrote, and jsonl, lines
{"documents": ["…"], "question": "…", "answers": ["…"]}.
Fields one would change: --config.model, .methods="('kv_packet','epic:tokens=8')", .num_samples
(questions), .adapter, .template=chat_reasoning, .num_timed (examples to time), .new_tokens; all are
in the file.
"""

from absl import app, flags

from launch.common import caches, configs, devices, errors, folders

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(devices)
flags.adopt_module_key_flags(errors)

CONFIG = configs.define(
    "configs/evaluate.py", "What to evaluate; any field as --config.field=value."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Answers, times and results.json go here.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    from kvpacket_jax.evaluate import run, summary
    from kvpacket_jax.report import tables
    from kvpacket_jax.runtime import progress, workdir

    cache_dir = caches.use()
    with errors.in_one_line():
        folder = folders.local("workdir", WORKDIR.value)
        with workdir.locked(folder, workdir.EVALUATE):
            results = run.evaluate(
                CONFIG.value, folder, cache_dir, devices.MESH.value, progress.SHOWN
            )
    progress.console.print(*tables.quality_tables(results), tables.cost_table(results))
    progress.paragraph(tables.quality_legend(results))
    if guarded := tables.guard_table(results):
        progress.console.print(guarded)
        progress.paragraph(tables.GUARD_LEGEND)
    if kinds := tables.kind_table(results):
        progress.console.print(kinds)
        progress.paragraph(tables.KIND_LEGEND)
    if lost := tables.lost_table(results):
        progress.console.print(lost)
        progress.paragraph(summary.LOST)
    progress.paragraph(tables.cost_legend(results))
    report = f"launch.report --workdir={folder}"
    progress.SHOWN.say(f"{folder / 'results.json'}; {report} shows answers that packets lose.")


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    configs.run(main)
