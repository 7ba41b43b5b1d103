"""What a build shows: packets and tokens a second and the time left, a sentence at the end."""

import time

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from kvpacket_jax import corpus, report

LINE_SECONDS = 30  # between lines where there is no terminal


class BuildProgress:
    """Follows `corpus.build` over the parts of a plan; a context manager."""

    def __init__(self, parts: list[corpus.Part]):
        self._packets = sum(len(part.items) for part in parts)
        tokens = sum(len(item.tokens) for part in parts for item in part.items)
        self._start = self._said = time.perf_counter()
        self._done = corpus.Progress(0, 0, 0)
        self._made_tokens = 0
        self._bar = Progress(
            TextColumn("packets"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=report.console,
            disable=not report.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=tokens, state=f"0/{self._packets}")

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def update(self, batch: corpus.Progress) -> None:
        """Shows one more batch."""
        self._done = corpus.Progress(*(a + b for a, b in zip(self._done, batch, strict=True)))
        # What was there costs no computing: rates are of batches that were computed.
        self._made_tokens += batch.tokens if batch.made else 0
        state = f"{self._done.packets}/{self._packets}  {self._rates()}"
        self._bar.update(self._task, advance=batch.tokens, state=state)
        if not report.console.is_terminal and time.perf_counter() - self._said > LINE_SECONDS:
            self._said = time.perf_counter()
            report.console.print(f"packets {state}", highlight=False)

    def say(self, text: str) -> None:
        """Prints above the bar."""
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def summary(self) -> str:
        """What was done, as a sentence."""
        done = self._done
        kept = done.packets - done.made
        return (
            f"{done.packets} packets of {done.tokens:,} tokens: {done.made} made"
            + (f" ({self._rates()})" if done.made else "")
            + f", {kept} there already."
        )

    def _rates(self) -> str:
        seconds = time.perf_counter() - self._start
        packets, tokens = self._done.made / seconds, self._made_tokens / seconds
        return f"{packets:.1f} packets/s, {tokens:,.0f} tokens/s"
