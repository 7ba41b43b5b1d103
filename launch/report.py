"""Turns evaluations and trainings into tables, figures and one HTML page.

python -m launch.report --workdir=runs/ratios,runs/documents --output=runs/report
"""

from absl import app, flags

from launch.common import caches, errors, folders

flags.adopt_module_key_flags(errors)  # so that --help shows it

WORKDIR = flags.DEFINE_list(
    "workdir",
    None,
    "Folders of evaluations, trainings or sweeps, with commas between; those below count too.",
)
OUTPUT = flags.DEFINE_string(
    "output", None, "report.html, report.md and figures go here; default: the first workdir/report."
)
PUBLISHED = flags.DEFINE_bool(
    "published",
    False,
    "Adds the figures that the authors published: of the same data sets, or all where none is.",
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}; several workdirs go with commas.")
    # Imported here: --help needs no jax.
    from kvpacket_jax.report import page

    caches.quiet_logs()
    with errors.in_one_line():
        workdirs = [folders.local("workdir", folder) for folder in WORKDIR.value or [""]]
        output = OUTPUT.value or workdirs[0] / "report"
        paths = page.write_report(workdirs, output, PUBLISHED.value)
    print(*paths, sep="\n")


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    app.run(main)
