"""What a build says of its speed: packets that were computed, by the time they took."""

from kvpacket_jax.serve import build, progress
from kvpacket_jax.serve.progress import BuildProgress


def test_a_batch_is_computed_before_one_that_was_there_is_reported(monkeypatch):
    """The preamble was there; the document's batch took ten seconds of its report's waiting."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    shown = BuildProgress([])
    now[0] = 10.0
    shown.add(build.Progress(1, 7, 0))
    now[0] = 10.1
    shown.add(build.Progress(1, 101, 1))
    assert "1 built (0.1 packets/s, 10 tokens/s), 1 there already" in shown.summary()
