"""Loading a real model keeps little beside its parameters."""

import json
import subprocess
import sys

import pytest

# A process of its own: the peak that the system keeps is of its whole life. Linux counts the file's
# mapped pages too.
PROGRAM = """
import json, resource, sys, time
import jax
import models
jax.block_until_ready(jax.numpy.ones(1))
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bare, start = peak(), time.perf_counter()
model = models.load(sys.argv[1], sys.argv[2])
jax.block_until_ready(model.params)
seconds = time.perf_counter() - start
size = sum(x.nbytes for x in jax.tree.leaves(model.params))
print(json.dumps({"seconds": seconds, "bytes": size, "peak": peak() - bare}))
"""


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smollm2-135m", 134_515_008),
        pytest.param("qwen2.5-coder-0.5b", 630_167_424, marks=pytest.mark.slow),
    ],
)
def test_loading_peaks_under_two_and_a_half_times_the_parameters(demo_folder, name, parameters):
    folder = demo_folder(name, "float32")
    command = [sys.executable, "-c", PROGRAM, str(folder), "float32"]
    actual = json.loads(subprocess.check_output(command, text=True))
    print(actual)
    assert actual["bytes"] == 4 * parameters
    assert actual["peak"] < 2.5 * actual["bytes"]
