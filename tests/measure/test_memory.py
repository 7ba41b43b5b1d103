"""Bytes of small programs: what they read, make and hold."""

import jax
import jax.numpy as jnp
from jax import lax

from kvpacket_jax.measure import memory


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_bytes_of_trees_and_programs():
    tree = {"a": jax.ShapeDtypeStruct((3, 5), jnp.bfloat16), "b": (jnp.zeros(7), None)}
    assert memory.tree_bytes(tree) == 3 * 5 * 2 + 7 * 4

    def write(cache, x):
        return lax.dynamic_update_slice(cache, x @ x, (0, 0))

    cache, x = f32(1024, 64), f32(64, 64)
    kept = memory.memory_analysis(write, cache, x)
    assert (kept.arguments, kept.outputs, kept.aliased) == (
        memory.tree_bytes((cache, x)), memory.tree_bytes(cache), 0
    )  # fmt: skip
    donated = memory.memory_analysis(write, cache, x, donate=(0,))
    assert donated.aliased == memory.tree_bytes(cache)


def test_programs_read_what_they_need():
    multiply = jax.jit(lambda w, x: x @ w)
    split = jax.jit(lambda a, b: (a * 2, b * 3))

    def chain(tree, x):
        y = multiply(tree["twice"], multiply(tree["twice"], x))
        return split(y, tree["unused"])[0] + tree["added"], tree["passed on"]

    square = f32(16, 16)
    tree = dict.fromkeys(("twice", "unused", "added", "passed on"), square)
    counts, x = memory.reads(chain, tree, square)
    assert counts == {"twice": 2, "unused": 0, "added": 1, "passed on": 0} and x == 1
    assert memory.made_bytes(chain, tree, square) == memory.tree_bytes(square)


def test_peak_memory_follows_what_is_alive():
    cache, x = f32(1024, 64), f32(64, 64)
    empty = jax.jit(lambda: jnp.zeros(cache.shape))
    write = lambda cache, x, at: lax.dynamic_update_slice(cache, x, (at, 0))  # noqa: E731
    donated, copied = jax.jit(write, donate_argnums=0), jax.jit(write)

    def chain(put, keep):
        def run(x):
            first = cache = empty()
            for at in (0, 64, 128):
                cache = put(cache, x, at)
            return (cache, first) if keep else cache

        return run

    size, small = memory.tree_bytes(cache), memory.tree_bytes(x)
    for put, keep, arrays in ((donated, False, 1), (copied, False, 2), (copied, True, 3)):
        peak = memory.peak_bytes(chain(put, keep), x)
        assert small + arrays * size <= peak < 2 * small + arrays * size, (arrays, peak)


def test_a_program_compiled_for_its_peak_is_the_one_that_runs(monkeypatch):
    """Otherwise a cache of programs holds each twice, and compiling takes twice as long."""
    lowered = []

    def analysis(fn, *args, donate=()):
        lowered.append(jax.jit(fn, donate_argnums=tuple(donate)).lower(*args).as_text())

    @jax.jit
    def program(x):
        return {"rows": (x + 1, x * 2), "sum": x.sum()}

    monkeypatch.setattr(memory, "memory_analysis", analysis)
    memory.peak_bytes(program, f32(8, 8))
    assert lowered == [program.lower(f32(8, 8)).as_text()]
