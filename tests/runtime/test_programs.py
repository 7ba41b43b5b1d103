"""Programs are forgotten before the kernel's limit on memory maps is reached."""

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
