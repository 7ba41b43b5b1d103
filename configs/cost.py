"""What one request costs with each method, on random ids of given lengths; no answers.

configs/cost.py        smollm2-135m in float32, as in the paper's code on a CPU
configs/cost.py:8b     the shape of Llama-3.1-8B in bfloat16, for a GPU or TPU

Any field as `--config.field=value`.
"""

from ml_collections import ConfigDict

from configs import arguments, evaluate

POINTS = {
    "8b": {
        "model": "random:llama-3.1-8b",
        "dtype": "bfloat16",
        "documents": "8x1024",
        "query": 50,
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    arguments.check("configs/cost.py", arg, POINTS)
    config = ConfigDict()
    config.model = "smollm2-135m"
    config.dtype = "float32"
    config.methods = ("full_recompute", *evaluate.METHODS)  # "name" or "name:field=value,…"
    config.seed = 0  # of the ids and of random soft tokens

    # Lengths in tokens.
    config.preamble = 16
    config.documents = "4x256"  # number x length; several with commas
    config.query = 24
    config.adapter = ""  # a folder or a shipped name; empty: random soft tokens, so many of them
    config.primer = 256  # random tokens that packets are built after where a method is primed
    config.header = 8
    config.trailer = 8

    config.tier = "device"  # where caches lie before the request; or "host"
    config.runs = 7  # timed, interleaved
    config.update(POINTS.get(arg, {}))
    return config
