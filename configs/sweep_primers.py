"""What a primer does, by its number of documents and by their kind; nothing is trained.

    python -m launch.sweep --config=configs/sweep_primers.py:biography --workdir=runs/primers
    python -m launch.report --workdir=runs/primers

`:wikipedia` and `:own_docs`, everyday documents, likewise. A primer's documents are of a training
split. own_docs has none: near to it are sheets, price lists and timetables that a generator wrote;
"everyday:3" is nearer.
"""

from ml_collections import ConfigDict

from configs import arguments, evaluate

PRIMERS = ("biography:1", "biography:3", "wikipedia:1", "wikipedia:3", "sheets:1", "sheets:3")


def get_config(arg: str | None = None) -> ConfigDict:
    program, _, name = (arg or "evaluate").partition(":")
    arguments.check("configs/sweep_primers.py", program, ["evaluate"])
    config = evaluate.get_config(name or None)
    config.methods = ("primed",)
    config.num_timed, config.runs = 1, 1
    return config


def sweep(add):
    add("usual", "evaluate", methods=("primed", "no_recompute"))
    for primer in PRIMERS:
        add(primer.replace(":", "_"), "evaluate", primer=primer)
