"""timings.json: what requests of a run cost, timed apart from its answers."""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kvpacket_jax.measure.cost import Cost, measure
from kvpacket_jax.measure.machine import measure_machine
from kvpacket_jax.measure.request import Entry
from kvpacket_jax.methods import Request
from kvpacket_jax.runtime import sealed
from kvpacket_jax.runtime.progress import SILENT, Progress
from models import LanguageModel
from models.disk.files import write_whole


def timings(
    path: pathlib.Path,
    model: LanguageModel,
    specs: Iterable[str],
    requests: Sequence[tuple[Request, Callable[[str], Entry]]],
    runs: int,
    progress: Progress = SILENT,
) -> dict:
    """Costs of requests by each method, from `path` where it has them, else measured and written.

    Args:
      requests: each with what makes a method's entry for it, from the method's spec.

    Returns:
      "date", "machine", and "methods": spec -> `typical` of its costs.
    """
    specs = list(specs)
    settings = {"num_timed": len(requests), "runs": runs, "devices": model.num_devices}
    if path.exists():
        try:
            stored = sealed.read_json(path, "It is measured again.")
            if stored.get("asked") == settings and set(specs) <= set(stored["methods"]):
                return stored
        except sealed.Damaged as error:
            progress.say(str(error))
    with progress.step("Measuring this machine"):
        machine = measure_machine(model.dtype, model.num_devices)
    costs: dict[str, list[Cost]] = {spec: [] for spec in specs}
    for i, (request, entry_of) in enumerate(requests, 1):
        with progress.step(f"Timing and counting all methods, example {i} of {len(requests)}"):
            entries = {spec: entry_of(spec) for spec in specs}
            for row in measure(model, entries, request, runs, machine):
                costs[row.method].append(row)
    timed = {
        "date": datetime.date.today().isoformat(),
        "asked": settings,
        "machine": dataclasses.asdict(machine),
        "methods": {spec: typical(rows) for spec, rows in costs.items()},
    }
    write_whole(path, json.dumps(sealed.stamped(timed), indent=1) + "\n")
    return timed


def typical(costs: Sequence[Cost]) -> dict:
    """One method's costs of several requests as one: a dict of the fields of `Cost`.

    Medians of seconds and of their ratios, means of what is counted (None where one is unknown).
    In place of `runs_s` it has "ttft_runs", the runs of each request.
    """
    fields = {}
    for key in (f.name for f in dataclasses.fields(Cost)):
        values = [getattr(cost, key) for cost in costs]
        if key == "method":
            continue
        elif key == "runs_s":
            fields["ttft_runs"] = [list(v) for v in values]
        elif None in values:
            fields[key] = None
        elif key == "tier":
            fields[key] = values[0]
        elif key.endswith("_s") or key.startswith("to_"):
            fields[key] = np.median(values, axis=0).tolist()
        else:
            fields[key] = float(np.mean(values))
    return fields
