"""Calls are timed in turn, each until what it returns is ready."""

import jax
import jax.numpy as jnp
import pytest

from kvpacket_jax.measure import timing


def test_calls_are_interleaved_and_waits(monkeypatch):
    log = []
    ready = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: log.append("ready") or ready(x))

    def call(name):
        log.append(name)
        return {"out": jnp.ones(3)}

    seconds = timing.interleaved({n: lambda n=n: call(n) for n in "ab"}, runs=2, warmup=1)
    assert log == ["a", "ready", "b", "ready"] * 3
    assert {n: len(t) for n, t in seconds.items()} == {"a": 2, "b": 2}
    assert all(t > 0 for times in seconds.values() for t in times)
    with pytest.raises(ValueError, match="warmup >= 1"):
        timing.interleaved({"a": lambda: call("a")}, warmup=0)


def test_what_comes_before_a_call_is_not_timed():
    log = []
    calls = {name: lambda name=name: log.append(name) for name in "ab"}
    timing.interleaved(calls, runs=1, before={"b": lambda: log.append("before b")})
    assert log == ["a", "before b", "b"] * 2


def test_ratios_are_of_the_same_round():
    assert timing.ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == 2.0
    assert timing.quartiles([1, 2, 3, 4, 5]) == (2.0, 4.0)
