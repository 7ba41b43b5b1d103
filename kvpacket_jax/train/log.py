"""A run's metrics.jsonl: one row a step, and one for each validation."""

import json
import time

from etils import epath

from kvpacket_jax.runtime import hosts, sealed
from models.disk.files import write_whole

VALIDATION = "validation"  # a field is this, the kind and the score, with slashes between


class Log:
    """Metrics as JSON lines, by the first host; rows of steps that a resumed run does again go.

    A row's `step` is the number of updates done, as in checkpoints: training begins at 0.
    Written whole each time, for object storage has no appending: before a checkpoint, and as often
    as a fiftieth of the time allows.
    """

    SHARE = 50

    def __init__(self, path: epath.Path, step: int):
        self.path = path
        self._rows = [r for r in read(path) if r["step"] <= step] if path.exists() else []
        self.flush()

    @property
    def rows(self) -> list[dict]:
        return self._rows

    def validation(self, step: int, scores: dict[str, dict[str, float | None]]) -> None:
        """Adds the scores of a validation, by kind; earlier ones of the same step go."""
        self._rows = [r for r in self._rows if r["step"] != step or "loss" in r]
        flat = {f"{VALIDATION}/{kind}/{k}": v for kind, s in scores.items() for k, v in s.items()}
        self.write({"step": step, **flat})

    def write(self, row: dict) -> None:
        """Adds a row."""
        self._rows.append(row)
        if time.monotonic() > self._due:
            self.flush()

    def flush(self) -> None:
        """Puts all rows into the file."""
        began = time.monotonic()
        if hosts.is_first():
            lines = (json.dumps(sealed.stamped(row)) + "\n" for row in self._rows)
            write_whole(self.path, "".join(lines))
        now = time.monotonic()
        self._due = now + self.SHARE * (now - began)


def scores_of(row: dict) -> dict[str, dict[str, float | None]]:
    """The scores of a row that `Log.validation` wrote, by kind; empty for that of a step."""
    scores: dict[str, dict[str, float | None]] = {}
    for field, value in row.items():
        if field.startswith(f"{VALIDATION}/"):
            _, kind, key = field.split("/")
            scores.setdefault(kind, {})[key] = value
    return scores


def read(path: epath.PathLike) -> list[dict]:
    """The rows of a metrics.jsonl; a last line that was cut short, without its end, is left out.

    Raises sealed.Damaged, a ValueError, that names another line that is not as it was written.
    """
    content = epath.Path(path).read_bytes()
    lines, rows = content.splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            row = sealed.unstamped(json.loads(line))
            rows.append(row | {"step": int(row["step"])})
        except sealed.WRONG_JSON as error:
            if number < len(lines) or content.endswith(b"\n"):
                raise sealed.Damaged(
                    f"{path}, line {number}: {error}. Remove the line, or the file: it is for "
                    "figures only, and the run goes on without it."
                ) from error
    return rows
