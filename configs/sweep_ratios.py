"""F1 against FLOPs and TTFT at several recompute ratios of every method: one evaluation.

    python -m launch.sweep --config=configs/sweep_ratios.py --workdir=runs/ratios

All settings answer the same questions and are timed in turn, so there is one member;
`configs/sweep_ratios.py:NAME` takes another data set, of those whose documents are about as long.
"""

from ml_collections import ConfigDict

from configs import arguments, evaluate

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
# Tokens of a document, for EPIC, whose setting is a number of them.
DOCUMENT = {
    "biography": 100,
    "biography_10": 100,
    "biography_20": 100,
    "biography_64": 55,
    "niah": 250,
    "ruler": 250,
    "wikipedia": 110,
    "hotpot_qa": 150,
    "musique": 125,
}


def methods(tokens: int) -> tuple[str, ...]:
    """All methods, each that recomputes a share of the documents at every ratio."""
    return (
        "kv_packet",
        "no_recompute",
        *(f"cache_blend:ratio={r}" for r in RATIOS),
        *(f"epic:tokens={round(r * tokens)}" for r in RATIOS),
        *(f"a3:ratio={r}" for r in RATIOS),
        *(f"rand_recompute:ratio={r}" for r in RATIOS),
        *(f"infoflow:ratio={r}" for r in RATIOS),
        "infoflow:ratio=0.3,reorder=true",
        "sam_kv",
        "sam_kv:initial=16,local=32,block=16",
        "single_cache",
        "sink",
        "no_cache",
    )


def get_config(arg: str | None = None) -> ConfigDict:
    program, _, name = (arg or "evaluate").partition(":")
    arguments.check("configs/sweep_ratios.py", program, ["evaluate"])
    arguments.check("configs/sweep_ratios.py:evaluate", name, DOCUMENT)
    config = evaluate.get_config(name or None)
    config.methods = methods(DOCUMENT[name or "biography"])
    return config


def sweep(add):
    add("ratios", "evaluate")
