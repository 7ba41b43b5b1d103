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


def _mixture() -> dict[str, ConfigDict]:
    life = dict(num_documents=5, num_questions=16, document_words=(64, 80))
    paragraphs = dict(num_documents=5, num_questions=30, document_words=(66, 94))
    return {
        "biography_5": train.entry("biography", 0.5, train.FIVE, **life),
        "wikipedia": train.entry("wikipedia", 0.5, train.PROSE, **paragraphs),
    }


def _validation() -> dict[str, ConfigDict]:
    own_docs = train.PROSE | dict(questions=10, tokens=448)
    paragraphs = dict(document_words=(66, 94), num_questions=30)
    life = dict(num_documents=5, num_questions=16)
    return {
        "biography": train.kind("biography", 4, train.FIVE, **life),
        "wikipedia": train.kind("wikipedia", 4, train.PROSE, **paragraphs),
        "own_docs": train.kind("own_docs", 8, own_docs),
    }


def get_config(arg: str | None = None) -> ConfigDict:
    arguments.check("configs/sweep_parts.py", arg, ["train"])
    config = train.get_config()
    config.mixture, config.validation = ConfigDict(_mixture()), ConfigDict(_validation())
    config.optimizer.writer_learning_rate, config.optimizer.clip_norm = 5e-4, 0.0
    config.opening = False
    config.microbatches, config.num_steps, config.validate_every = 2, 40, 10
    config.scales = (1.0,)
    return config


def sweep(add):
    for name, parts in PARTS.items():
        add(name, "train", **parts)
