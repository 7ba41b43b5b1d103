"""Programs are forgotten before the limit on memory maps; a GPU compiles many at a time."""

import threading

import jax
import jax.numpy as jnp

from kvpacket_jax.runtime import programs


def maps() -> int:
    return len(programs.MAPS.read_text().splitlines())


def test_room_is_made_only_when_there_is_little(tmp_path, monkeypatch):
    x = jnp.arange(8.0)
    program = jax.jit(lambda x: jnp.sort(jnp.cumsum(jnp.tanh(x))))
    expected = program(x)
    monkeypatch.setattr(programs, "LIMIT", tmp_path / "limit")
    programs.LIMIT.write_text(str(10 * maps()))
    assert not programs.make_room() and program._cache_size() == 1
    before = maps()
    programs.LIMIT.write_text(str(before))
    assert programs.make_room() and program._cache_size() == 0
    assert maps() < before
    assert (program(x) == expected).all()


def test_programs_compile_side_by_side_on_one_gpu_alone(monkeypatch):
    both = threading.Barrier(2, timeout=20)  # passed only if both tasks run at once

    def task():
        both.wait()
        return jnp.ones(())

    assert programs.side_by_side([task, task]) == []  # a CPU: nothing is called
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert programs.side_by_side([task, task]) == []  # eight devices
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert programs.side_by_side([task, task]) == [1.0, 1.0]
