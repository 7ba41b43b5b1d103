"""What each part of an adapter learns from the same sets of documents, by their number.

    python -m launch.sweep --config=configs/sweep_parts.py --workdir=runs/parts
    python -m launch.report --workdir=runs/parts

Every member trains other parts on the same biographies and paragraphs of Wikipedia, two sets a
step; the report draws KL and agreement on each kind that is validated on. On two CPU cores a member
compiles for ten minutes, once, and then takes about 14 seconds a set.
"""

from ml_collections import ConfigDict

from configs import arguments, train

SOFT = {"header": 8, "trailer": 8}
NO_PRIMER, NO_WRITER = {"primer": ""}, {"writer_rank": 0}
PARTS = {
    "tokens": SOFT | NO_PRIMER | NO_WRITER,
    "tokens+primer": SOFT | NO_WRITER,
    "writer": NO_PRIMER,
    "writer+primer": {},
    "tokens+writer+primer": SOFT,
}


def get_config(arg: str | None = None) -> ConfigDict:
    arguments.check("configs/sweep_parts.py", arg, ["train"])
    config = train.get_config()
    config.mixture = ConfigDict({k: config.mixture[k] for k in ("biography_5", "wikipedia")})
    for entry in config.mixture.values():
        entry.weight = 0.5
    # As results/parts was measured; configs/train.py's documents have become longer since.
    config.mixture.biography_5.options.update(num_questions=16, document_words=(64, 80))
    config.mixture.wikipedia.options.document_words = (66, 94)
    kinds = ("biography", "wikipedia", "own_docs")
    config.validation = ConfigDict({k: config.validation[k] for k in kinds})
    config.microbatches, config.num_steps, config.validate_every = 2, 40, 10
    config.scales = (1.0,)
    return config


def sweep(add):
    for name, parts in PARTS.items():
        add(name, "train", **parts)
