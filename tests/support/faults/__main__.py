"""Injects faults into everything that is read, and says what came of them: `make faults`.

python -m tests.support.faults [--classes=packets,gguf] [--scale=0.1] [--seed=0]

Ends with status 1 if anything but a right result, or a refusal in one line that names the damaged
file, came of a fault, or if anything else is lost. The soak's requests are without a fault.

Generators of our own and not hypothesis: faults are counted over every region of real files, and an
offset is as small as an example gets. tests/test_faults.py runs a few of each class.
"""

import concurrent.futures
import sys

import rich.box
from absl import app, flags
from rich.console import Console
from rich.table import Table

from tests.support.faults import foreign, live, own
from tests.support.faults.harness import FINDINGS, Faults, Tally, run

CLASSES: dict[str, tuple[Faults, int]] = {
    "packets": (own.packets, 4000),
    "signed_packets": (own.signed_packets, 2000),
    "verified_store": (own.verified_store, 1000),
    "compressed_packets": (own.compressed_packets, 2000),
    "adapters": (own.adapters, 2000),
    "checkpoints": (own.checkpoints, 600),
    "teacher_targets": (own.teacher_targets, 2400),
    "run_state": (own.run_state, 2000),
    "results": (own.results, 1000),
    "model_folder": (foreign.model_folder, 2500),
    "gguf": (foreign.gguf, 1500),
    "pt": (foreign.pt, 3000),
    "full_disk": (live.full_disk, 100),
    "killed_builders": (live.killed_builders, 10),
    "soak": (live.soak, 5000),
}

NAMES = flags.DEFINE_list("classes", list(CLASSES), "Which.")
SCALE = flags.DEFINE_float("scale", 1.0, "Times the usual number of faults.", lower_bound=0.001)
SEED = flags.DEFINE_integer("seed", 0, "Of what is damaged, and where.")
PROCESSES = flags.DEFINE_integer("processes", 2, "Classes at once.", lower_bound=1)


def table(tallies: list[Tally]) -> Table:
    shown = Table("class", "faults", *FINDINGS, "s", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for tally in tallies:
        counts = (str(tally.counts()[outcome]) for outcome in FINDINGS)
        shown.add_row(tally.name, f"{tally.faults:,}", *counts, f"{tally.seconds:.0f}")
    return shown


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    if unknown := set(NAMES.value) - set(CLASSES):
        raise app.UsageError(f"No class {', '.join(unknown)}; there are {', '.join(CLASSES)}.")
    console = Console()

    def one(name: str) -> Tally:
        faults, number = CLASSES[name]
        say = lambda text: console.print(f"{name}: {text}", markup=False)  # noqa: E731
        tally = run(name, faults, SEED.value, max(int(number * SCALE.value), 1), say)
        console.print(f"{name}: {tally.faults:,} faults, {tally.seconds:.0f} s")
        return tally

    with concurrent.futures.ThreadPoolExecutor(PROCESSES.value) as pool:
        tallies = list(pool.map(one, NAMES.value))
    console.print(table(tallies))
    requests = sum(tally.faults for tally in tallies if tally.name == "soak")
    total = sum(tally.faults for tally in tallies) - requests
    findings = sum(len(tally.findings) for tally in tallies)
    soak = f" and a soak of {requests:,} requests" if requests else ""
    console.print(f"{total:,} faults{soak}: {findings} findings, seed {SEED.value}")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    app.run(main)
