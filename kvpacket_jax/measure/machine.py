"""The machine a figure was made on, what it can do at best, and the floor that follows from it."""

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from kvpacket_jax.measure.timing import call_seconds


@dataclasses.dataclass(frozen=True)
class Machine:
    """What figures were made on. Those of two machines are never compared.

    device: model of CPU or accelerator. devices: how many of them the model lay on. threads: of the
    host, that this process may use. peak: FLOP/s of products of `dtype` operands with float32
    results. bandwidth: bytes/s read from memory. Both are of one device times `devices` (once for
    those of one CPU, which share it).
    """

    device: str
    platform: str  # cpu, gpu, tpu
    devices: int
    threads: int
    jax_version: str
    dtype: str
    peak: float
    bandwidth: float


def measure_machine(dtype: Any, devices: int = 1) -> Machine:
    """Measures the default device, in a second or two, with products of `dtype` operands.

    float32 products are at full precision, as the models' are: no TF32, no bf16 passes.
    """
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    together = 1 if on_cpu else devices
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only, like /proc
    cpuinfo = Path("/proc/cpuinfo").read_text() if on_cpu and affinity else ""
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    return Machine(
        device=model[1] if model else device.device_kind,
        platform=device.platform,
        devices=devices,
        threads=len(affinity(0)) if affinity else os.cpu_count() or 1,
        jax_version=jax.__version__,
        dtype=jnp.dtype(dtype).name,
        peak=together * _matrix_peak(jnp.dtype(dtype), on_cpu),
        bandwidth=together * _bandwidth(2**30 if on_cpu else 2**31),
    )


def _matrix_peak(dtype: jnp.dtype, on_cpu: bool) -> float:
    """FLOP/s of the fastest run of the fastest shape, so that no share of it exceeds 1 by much."""

    @jax.jit
    def product(a, b):
        precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
        return jax.lax.dot(a, b, precision=precision, preferred_element_type=jnp.float32)

    shapes = ((512, 896, 4864), (1024,) * 3) if on_cpu else ((8192,) * 3, (16384, 8192, 8192))
    rates = []
    for m, k, n in shapes:
        # Random operands: accelerators draw less power, and clock higher, on constant ones.
        a = jax.random.uniform(jax.random.key(0), (m, k), jnp.float32, -1).astype(dtype)
        b = jax.random.uniform(jax.random.key(1), (k, n), jnp.float32, -1).astype(dtype)
        rates.append(2 * m * k * n / _fastest(lambda a=a, b=b: product(a, b)))
    return max(rates)


def _bandwidth(size: int) -> float:
    """Bytes/s of reading `size` bytes, more than a processor's caches hold.

    Weights and caches are read, hardly anything is written. A core that writes as much as it reads
    may move more bytes in a second, but not read more.
    """
    total = jax.jit(jnp.sum)
    data = jnp.zeros(size // 4, jnp.float32)
    return size / _fastest(lambda: total(data))


def _fastest(fn: Callable[[], Any], budget: float = 0.25) -> float:
    """Seconds of the fastest call within about `budget` seconds: noise only ever slows one down."""
    jax.block_until_ready(fn())  # compiles
    times = [call_seconds(fn)]
    while sum(times) < budget:
        times.append(call_seconds(fn))
    return min(times)


def floor_seconds(flops: float, moved_bytes: float, machine: Machine) -> float:
    """The least seconds `machine` takes for `flops` and memory traffic."""
    return max(flops / machine.peak, moved_bytes / machine.bandwidth)
