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
        self._start = time.perf_counter()
        self._done = build.Progress(0, 0, 0)
        self._built_tokens = 0

    def add(self, batch: build.Progress) -> None:
        """Shows one more batch."""
        self._done = build.Progress(*(a + b for a, b in zip(self._done, batch, strict=True)))
        # What was there costs no computing: rates are of batches that were computed.
        self._built_tokens += batch.tokens if batch.built else 0
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
        seconds = time.perf_counter() - self._start
        packets, tokens = self._done.built / seconds, self._built_tokens / seconds
        return f"{packets:.1f} packets/s, {tokens:,.0f} tokens/s"
