"""Fixtures: the tiny golden models, and the demo models converted once for all tests."""

import atexit
import os
import pathlib
import shutil
import tempfile

import jaxlib

# Most of the tests' time is the compiler's, on programs that run once; the commands' tests inherit
# this. The last flag, which jax 0.11 no longer knows, saves half of it: MLIR's, for each fusion.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    + " --xla_cpu_use_fusion_emitters=false"
    * (jaxlib.version.__version_info__ < (0, 11)),
)

# What one worker or command compiled, the others read. Workers start later and inherit it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)

import jax
import pytest

import models
from kvpacket_jax.runtime.programs import make_room
from tests.support import byte_model as byte_model_files
from tests.support import training
from tests.support.golden import GOLDEN

# For tests of meshes; all others run on the first.
jax.config.update("jax_num_cpu_devices", 8)


# Long tests, with all of training: were they last, one worker would wait for the other.
FIRST = "serve/test_programs.py", "models/test_parity.py"


def pytest_collection_modifyitems(items):
    first = lambda path: path.parent.name == "train" or path.as_posix().endswith(FIRST)  # noqa: E731
    items.sort(key=lambda item: not first(item.path))


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """No module's programs stay where those of the next might not fit; test_loss adds the most."""
    yield
    make_room(share=0.3)


@pytest.fixture(scope="session")
def tiny():
    """name -> the tiny golden model in float32, loaded once."""
    loaded = {}

    def get(name: str, **choices) -> models.LanguageModel:
        key = (name, *sorted(choices.items()))
        if key not in loaded:
            loaded[key] = models.load(str(GOLDEN / name), "float32", **choices)
        return loaded[key]

    return get


@pytest.fixture(scope="module", params=["tiny_llama31", "tiny_qwen3"])
def model(request, tiny):
    """One tiny model whose layers are scanned, and one where a loop walks them."""
    return tiny(request.param, scan_layers=request.param == "tiny_llama31")


@pytest.fixture(scope="session")
def demo_folder():
    """(name, dtype) -> the converted folder of a demo model, fetched if it is not there yet."""

    def get(name: str, dtype: str = "float32") -> pathlib.Path:
        return models.find(name, dtype, models.default_cache_dir())

    return get


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory) -> pathlib.Path:
    """A random model of a few thousand parameters that reads bytes."""
    return byte_model_files.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def load(byte_model):
    """(dtype, scanned) -> the byte model, loaded once."""
    loaded = {}

    def get(dtype: str = "float32", scan: bool = False) -> models.LanguageModel:
        if (dtype, scan) not in loaded:
            loaded[dtype, scan] = models.load(str(byte_model), dtype, scan_layers=scan)
        return loaded[dtype, scan]

    return get


@pytest.fixture(scope="session")
def trained(byte_model, tmp_path_factory) -> pathlib.Path:
    """The workdir of a short run on one device that nothing stopped."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    training.run(byte_model, workdir)
    return workdir
