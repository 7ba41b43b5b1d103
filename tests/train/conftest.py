"""What all tests of training share."""

import pytest

from kvpacket_jax.measure.machine import Machine
from kvpacket_jax.train import loop

MACHINE = Machine("it", "cpu", 1, 1, "0", "float32", peak=1e9, bandwidth=1e9)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A forecast's machine is measured by the runs that are processes of their own."""
    monkeypatch.setattr(loop, "measure_machine", lambda *_: MACHINE)
