"""F1 by the number and by the length of documents, the other fixed.

python -m launch.sweep --config=configs/sweep_documents.py --workdir=runs/documents
"""

from ml_collections import ConfigDict

from configs import arguments, evaluate

NUMBERS = (2, 5, 10, 15, 20)
WORDS = (40, 70, 100, 130, 160)
NUMBER, LENGTH = 5, 70  # of the one that is fixed
METHODS = ("kv_packet", "no_recompute", "cache_blend:ratio=0.3", "epic:tokens=16", "no_cache")


def get_config(arg: str | None = None) -> ConfigDict:
    arguments.check("configs/sweep_documents.py", arg, ["evaluate"])
    config = evaluate.get_config("biography")
    config.dataset.options.document_words = LENGTH
    config.methods = METHODS
    return config


def sweep(add):
    pairs = [(n, LENGTH) for n in NUMBERS] + [(NUMBER, w) for w in WORDS if w != LENGTH]
    for number, words in pairs:
        options = {
            "dataset.options.num_documents": number,
            "dataset.options.document_words": words,
        }
        add(f"documents_{number}_words_{words}", "evaluate", **options)
