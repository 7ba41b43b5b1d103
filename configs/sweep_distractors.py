"""F1 and TTFT by the number of other paragraphs beside those that a question needs.

    python -m launch.sweep --config=configs/sweep_distractors.py --workdir=runs/distractors \
        --override=evaluate.dataset.options.folder=DIR
    python -m launch.report --workdir=runs/distractors

Of MuSiQue, which has 16 to 18 others: 20 is all of them.
"""

from ml_collections import ConfigDict

from configs import arguments, evaluate

NUMBERS = (2, 5, 10, 20)
METHODS = (*evaluate.FEW, "cache_blend:ratio=0.3", "epic:tokens=16", "infoflow:ratio=0.3")


def get_config(arg: str | None = None) -> ConfigDict:
    arguments.check("configs/sweep_distractors.py", arg, ["evaluate"])
    config = evaluate.get_config("musique")
    del config.dataset.options.num_documents  # which num_distractors replaces
    config.methods = METHODS
    return config


def sweep(add):
    for number in NUMBERS:
        add(f"others_{number}", "evaluate", **{"dataset.options.num_distractors": number})
