"""What a build shows: packets and tokens a second and the time left, a sentence at the end."""

import time

from kvpacket_jax.runtime.progress import Bar
from kvpacket_jax.serve import build


class BuildProgress(Bar):
    """Follows `build.build` over the parts of a plan."""

    def __init__(self, parts: list[build.Part]):
        items = [item for part in parts for item in part.items]
        self._packets = len(items)
        self._preamble = any(not item.ids for item in items)
        tokens = sum(len(item.tokens) for item in items)
        super().__init__("packets", tokens, state=f"0/{self._packets}")
        self._last = time.perf_counter()
        self._done = self._computed = build.Progress(0, 0, 0)
        self._seconds = 0.0  # that the computed batches took
        self._waiting = 0.0  # since the last of them: the next is computed before one is reported

    def add(self, batch: build.Progress) -> None:
        """Shows one more batch."""
        now = time.perf_counter()
        self._done = _sum(self._done, batch)
        self._waiting += now - self._last
        if batch.built:  # what was there costs no computing
            self._computed = _sum(self._computed, batch)
            self._seconds, self._waiting = self._seconds + self._waiting, 0.0
        self._last = now
        self.update(self._done.tokens, f"{self._done.packets}/{self._packets}  {self._rates()}")

    def summary(self) -> str:
        """What was done, as a sentence."""
        done = self._done
        present = done.packets - done.built
        return (
            f"{done.packets} packets{', the preamble among them,' if self._preamble else ''} of "
            f"{done.tokens:,} tokens: {done.built} built"
            + (f" ({self._rates()})" if done.built else "")
            + f", {present} there already."
        )

    def _rates(self) -> str:
        seconds = max(self._seconds, 1e-9)
        packets, tokens = self._computed.packets / seconds, self._computed.tokens / seconds
        return f"{packets:.1f} packets/s, {tokens:,.0f} tokens/s"


def _sum(a: build.Progress, b: build.Progress) -> build.Progress:
    return build.Progress(*(x + y for x, y in zip(a, b, strict=True)))
