"""Header and trailer lengths: an adapter is trained for each pair, then evaluated.

python -m launch.sweep --config=configs/sweep_lengths.py --workdir=runs/lengths

A member trains soft tokens alone, for as many steps as configs/train.py says: hours on two cores.
"""

from ml_collections import ConfigDict

from configs import arguments, evaluate, train

PAIRS = ((8, 8), (1, 1), (2, 2), (4, 4), (1, 8), (8, 1), (16, 16))
METHODS = ("kv_packet", "no_recompute")


def get_config(arg: str | None = None) -> ConfigDict:
    arguments.check("configs/sweep_lengths.py", arg, ["train", "evaluate"])
    if arg == "train":
        return train.get_config("tokens")
    config = evaluate.get_config("biography")
    config.methods = METHODS
    return config


def sweep(add):
    for header, trailer in PAIRS:
        add(
            f"header_{header}_trailer_{trailer}",
            "train+evaluate",
            **{"train.header": header, "train.trailer": trailer},
        )
