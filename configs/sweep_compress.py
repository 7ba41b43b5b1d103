"""F1 against the bytes of packets: every compressor at five shares of the slots.

    python -m launch.sweep --config=configs/sweep_compress.py --workdir=runs/compress

All answer the same questions, so there is one member; `configs/sweep_compress.py:NAME` takes
another data set of configs/evaluate.py. An adapter with soft tokens, which always stay, needs
larger shares: --override=evaluate.methods. kv_distill is not among them, for it needs an adapter
with a distiller: --override=evaluate.adapter=DIR, with
--override=evaluate.methods="('kv_packet','kv_packet:compress=kv_distill,keep=0.5')".
"""

from ml_collections import ConfigDict

from configs import arguments, evaluate

COMPRESSORS = ("streaming", "knorm", "snapkv", "zeromerge", "expected_attention", "kvzip")
KEEPS = (0.9, 0.75, 0.5, 0.25, 0.1)


def get_config(arg: str | None = None) -> ConfigDict:
    program, _, name = (arg or "evaluate").partition(":")
    arguments.check("configs/sweep_compress.py", program, ["evaluate"])
    config = evaluate.get_config(name or None)
    config.methods = (
        "kv_packet",
        *(f"kv_packet:compress={c},keep={keep}" for c in COMPRESSORS for keep in KEEPS),
        "no_cache",
    )
    return config


def sweep(add):
    add("compress", "evaluate")
