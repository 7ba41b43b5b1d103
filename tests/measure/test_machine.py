"""The machine's measurement, and the floor that follows from it."""

import jax
import jax.numpy as jnp
import pytest

from kvpacket_jax.measure.machine import floor_seconds, measure_machine


def test_machine_and_floor():
    machine = measure_machine(jnp.bfloat16, devices=2)
    assert machine.device and machine.threads >= 1 and machine.devices == 2
    assert machine.dtype == "bfloat16" and machine.jax_version == jax.__version__
    assert 1e9 < machine.peak < 1e16 and 1e8 < machine.bandwidth < 1e14
    assert floor_seconds(2 * machine.peak, 0, machine) == pytest.approx(2)
    assert floor_seconds(machine.peak, 3 * machine.bandwidth, machine) == pytest.approx(3)
