"""What is shown while something runs: a bar in a terminal, a line now and then in a log."""

import collections
import contextlib
import datetime
import os
import statistics
import time
from collections.abc import Iterator, Sequence

import rich.console
import rich.progress
from rich.progress import BarColumn, TextColumn
from rich.text import Text

# Wide enough for the tables; in a narrower window their lines are broken, not cut.
WIDTH = 110
console = rich.console.Console()
stderr = rich.console.Console(stderr=True)  # of programs whose standard output is their result
if not os.isatty(1) or console.width < WIDTH:
    console.width = WIDTH

LINE_SECONDS = 30  # between lines where there is no terminal
RECENT = 20  # updates that the time left is told from
BURST_SECONDS = 1  # updates that come closer together are counted as one


@contextlib.contextmanager
def step(text: str, on: rich.console.Console | None = None) -> Iterator[None]:
    """Shows what is being done, and how many seconds it took; on `console` if `on` is None."""
    on, start = on or console, time.perf_counter()
    with on.status(Text(f"{text} …")):
        if not on.is_terminal:
            on.print(Text(f"{text} …"))
        yield
    if on.is_terminal:
        on.print(Text(f"{text}: {time.perf_counter() - start:.1f} s"))


def track(items: Sequence, text: str, done: int = 0) -> Iterator:
    """The items one by one, with how many are done, `done` of them before, and the time left."""
    total = done + len(items)
    with Bar(text, total, done, f"{done}/{total}") as bar:
        for i, item in enumerate(items, done + 1):
            yield item
            bar.update(i, f"{i}/{total}")


class Progress:
    """What a function tells of its progress. This one shows nothing; `SHOWN` shows it."""

    def step(self, text: str) -> contextlib.AbstractContextManager:
        """Entered around what `text` says is being done."""
        return contextlib.nullcontext()

    def track(self, items: Sequence, text: str, done: int = 0) -> Iterator:
        """The items one by one; `done` of them were done before."""
        return iter(items)

    def say(self, text: str) -> None:
        """A line for the person who waits."""


def paragraph(text: str) -> None:
    """Prints text after an empty line, its lines broken at the console's width."""
    console.print()
    console.print(Text(text))


class _Shown(Progress):
    def step(self, text):
        return step(text)

    def track(self, items, text, done=0):
        return track(items, text, done)

    def say(self, text):
        console.print(text, highlight=False, markup=False, soft_wrap=True)


SILENT, SHOWN = Progress(), _Shown()


class Bar:
    """How far a loop is, its state in words, and the time left; a context manager."""

    def __init__(
        self, text: str, total: int, completed: int = 0, state: str = "", shown: bool = True
    ):
        self._text, self._shown = text, shown
        self._bar = rich.progress.Progress(
            TextColumn(text),
            BarColumn(),
            TextColumn("{task.fields[state]}{task.fields[when]}", markup=False),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task("", total=total, completed=completed, state=state, when="")
        self._total, self._completed = total, completed
        self._began = self._updated = self._said = time.perf_counter()
        self._each: collections.deque[float] = collections.deque(maxlen=RECENT)

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def update(self, completed: int, state: str) -> None:
        """Shows that `completed` of the total are done."""
        when = self._when(completed)
        self._bar.update(self._task, completed=completed, state=state, when=when)
        if console.is_terminal or time.perf_counter() - self._said < LINE_SECONDS:
            return
        self._said = time.perf_counter()
        self.say(f"{self._text} {state}{when}")

    def _when(self, completed: int) -> str:
        """The time left by the median of recent updates, or all of it at the end.

        A mean would be skewed for a long time by the first compilation or by a pause. What comes
        seldom, such as validation, is left out.
        """
        now, fresh = time.perf_counter(), completed - self._completed
        if fresh > 0 and now - self._updated >= BURST_SECONDS:
            self._each.append((now - self._updated) / fresh)
            self._updated, self._completed = now, completed
        if completed >= self._total:
            return f"  in {_whole_seconds(now - self._began)}"
        if len(self._each) < 2:  # the first may have waited for a compiler
            return ""
        left = statistics.median_low(self._each) * (self._total - completed)
        return f"  {_whole_seconds(left)} left"

    def say(self, text: str) -> None:
        """Prints above the bar."""
        if self._shown:
            SHOWN.say(text)


def _whole_seconds(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=round(seconds))
