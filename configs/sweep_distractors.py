"""F1 and TTFT by the number of paragraphs: the gold ones of MuSiQue among more and more others.

python -m launch.sweep --config=configs/sweep_distractors.py --workdir=runs/distractors \
    --override=evaluate.dataset.options.folder=DIR
"""

from ml_collections import ConfigDict

from configs import arguments, evaluate

NUMBERS = (2, 5, 10, 20)


def get_config(arg: str | None = None) -> ConfigDict:
    arguments.check("configs/sweep_distractors.py", arg, ["evaluate"])
    return evaluate.get_config("musique")


def sweep(add):
    for number in NUMBERS:
        add(f"paragraphs_{number}", "evaluate", **{"dataset.options.num_documents": number})
