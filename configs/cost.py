"""What one request costs with each method, on random ids of given lengths; no answers.

configs/cost.py        smollm2-135m in float32, as in the paper's code on a CPU
configs/cost.py:8b     the shape of Llama-3.1-8B in bfloat16, for a GPU or TPU
configs/cost.py:cpu    qwen2.5-coder-0.5b in bfloat16, 1k to 16k cached tokens in 4 to 128 packets
configs/cost.py:gpu    the shape of Llama-3.1-8B, 1k to 64k cached tokens; `:tpu` is the same

Any field as `--config.field=value`.
"""

from ml_collections import ConfigDict

from configs import arguments, evaluate

LARGE = {
    "model": "random:llama-3.1-8b",
    "dtype": "bfloat16",
    "documents": "8x1024",
    "query": 50,
}
# What is measured on every accelerator: the methods that are ahead, and what they are held against.
GROWING = LARGE | {
    "documents": "4x256/4x1024/16x1024/128x128/64x1024",
    "methods": ("full_recompute", "kv_packet", "epic:tokens=16", "cache_blend:ratio=0.15"),
    "runs": 5,
}
POINTS = {
    "8b": LARGE,
    "cpu": {
        "model": "qwen2.5-coder-0.5b",
        "dtype": "bfloat16",
        "documents": "4x256/16x64/4x1024/32x128/16x1024/128x128",
        "query": 48,
        "methods": ("kv_packet", "no_cache"),  # two cores read 16k tokens for minutes
    },
    "gpu": GROWING,
    "tpu": GROWING,
}


def get_config(arg: str | None = None) -> ConfigDict:
    arguments.check("configs/cost.py", arg, POINTS)
    config = ConfigDict()
    config.model = "smollm2-135m"
    config.dtype = "float32"
    config.shared_layers = ""  # "19:23": these take layer 18's attention weights, cache no keys
    # True: in the query's prefill a Pallas kernel attends to packets (models/paged_kernel.py). No
    # TPU has run it yet; on a CPU it is interpreted, and slow. The query alone, over a plain
    # cache, goes without it.
    config.paged_kernel = False
    config.methods = ("full_recompute", *evaluate.METHODS)  # "name" or "name:field=value,…"
    config.seed = 0  # of the ids and of random soft tokens

    # Lengths in tokens.
    config.preamble = 16
    # Number x length; several with commas, and several points, measured one after the other, with
    # slashes.
    config.documents = "4x256"
    config.query = 24
    # Requests at once over the same packets; "1/4/16": each at every point. Above 1 without the
    # methods whose own pass runs the query.
    config.batch = "1"
    config.beside_torch = True  # times transformers too, on a CPU, where torch is installed
    config.adapter = ""  # a folder or a shipped name; empty: random soft tokens, so many of them
    config.primer = 256  # random tokens that packets are built after where a method is primed
    config.header = 8
    config.trailer = 8

    config.tier = "device"  # where caches lie before the request; or "host"
    config.runs = 7  # timed, interleaved
    config.update(POINTS.get(arg, {}))
    return config
