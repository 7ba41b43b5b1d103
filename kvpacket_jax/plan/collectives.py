"""What a compiled program sends between devices, read from its text."""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(r"= (.+?) (" + "|".join(KINDS) + r")(-start)?\(")
_CALLED = re.compile(
    r"(?:body|calls|to_apply|called_computations|branch_computations)=\{?%?([\w.-]+)"
)
_CONDITION = re.compile(r" while\(.*condition=%?([\w.-]+)")
_CONSTANT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
# The devices of a group: listed, as [groups,devices], or as named axes of a mesh with their sizes.
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_NAMED = re.compile(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}")


class Traffic(NamedTuple):
    """One kind of collective: how often a program runs it, and bytes that one device sends."""

    kind: str
    count: int
    sent: int


def traffic(hlo: str) -> tuple[Traffic, ...]:
    """Collectives of an optimised HLO module's text, loops (of scans) times their length.

    Bytes are those of a ring of g devices: (g - 1) / g of the array for a gather or a scatter,
    twice that for a reduction, all of it for a permutation. Raises NotImplementedError for a loop
    or a group of devices that it cannot read.
    """
    computations, entry = _computations(hlo)
    totals: dict[str, list[float]] = {}  # kind -> how often, bytes

    def walk(name: str, times: int) -> None:
        for line in computations.get(name, ()):
            if match := _OPERATION.search(line):
                kind = match[2]
                total = totals.setdefault(kind, [0, 0.0])
                total[0] += times
                total[1] += times * _sent(kind, match[1], bool(match[3]), line)
                continue
            trips = 1
            if match := _CONDITION.search(line):  # a scan: counts from 0 to a constant
                bounds = _CONSTANT.findall("\n".join(computations[match[1]]))
                if len(bounds) != 1:
                    raise NotImplementedError(f"How often the loop {match[1]} runs is not stated.")
                trips = int(bounds[0])
            for called in _CALLED.findall(line):
                walk(called, times * trips)

    walk(entry, 1)
    return tuple(Traffic(k, int(n), round(b)) for k, (n, b) in sorted(totals.items()))


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    computations, name, entry = {}, "", ""
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[1]
            computations[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def _sent(kind: str, shape: str, started: bool, line: str) -> float:
    sizes = [
        _BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in _ARRAY.findall(shape)
    ]
    # What a start gives is (operands, results, ...): the results are the larger or the same. An
    # all-reduce's gives its results alone.
    both = started and shape.startswith("(") and kind != "all-reduce"
    size = max(sizes, default=0) if both else sum(sizes)
    if kind == "collective-permute":
        return size
    g = _group(line)
    ring = (g - 1) / g
    if kind == "all-reduce":
        return 2 * ring * size
    return ring * size * (g if kind == "reduce-scatter" else 1)


def _group(line: str) -> int:
    """How many devices take part together."""
    if match := _LISTED.search(line):
        return len(match[1].split(","))
    if match := _COUNTED.search(line):
        return int(match[1])
    if match := _NAMED.search(line):
        sizes = dict(part.split("=") for part in match[1].replace("'", "").split(","))
        return math.prod(int(sizes[axis]) for axis in match[2].replace("'", "").split(","))
    raise NotImplementedError(f"Which devices take part is not stated: {line.strip()[:200]}")
