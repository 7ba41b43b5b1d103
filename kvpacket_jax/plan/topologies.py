"""TPU slices: what a chip can do, and what lets libtpu compile for one that is not there.

Imports no jax: the variables must be set before it is.
"""

import dataclasses
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device has and can do at the most; None where it is not known."""

    name: str
    memory: int  # bytes
    peak: float  # bfloat16 FLOP/s
    bandwidth: float  # bytes/s to and from memory
    links: float | None  # bytes/s to other chips, all links together


# From cloud.google.com/tpu/docs, "System architecture", one page for each version.
CHIPS = {
    "v4": Chip("TPU v4", 32 * GIB, 275e12, 1228e9, 300e9),
    "v5e": Chip("TPU v5e", 16 * GIB, 197e12, 819e9, 200e9),
    "v5p": Chip("TPU v5p", 95 * GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip("TPU v6e", 32 * GIB, 918e12, 1640e9, 448e9),
}
_TYPES = {"v5e": "v5litepod"}
_CORES = {"v4": 2, "v5p": 2}  # of a chip, which the type of a slice counts


def parse(text: str) -> tuple[str, int]:
    """("v5e", 8) of "v5e:2x4". Raises ValueError with what there is."""
    version, _, shape = text.partition(":")
    if version not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise ValueError(
            f"--topology={text} is not of the form v5e:2x4. Versions: {', '.join(CHIPS)}."
        )
    return version, math.prod(map(int, shape.split("x")))


def environment(text: str) -> dict[str, str]:
    """Variables to set before jax is imported."""
    version, chips = parse(text)
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": f"{_TYPES.get(version, version)}-{chips * _CORES.get(version, 1)}",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }
