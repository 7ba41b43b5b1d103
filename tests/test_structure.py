"""The layout: which folder may import which, and what importing one loads."""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("models", "kvpacket_jax", "configs", "launch", "tests")
HEAVY = ("optax", "grain", "tensorflow_datasets", "scipy", "matplotlib")
# What packets are made of and how they are read knows nothing of what is done with them.
ABOVE_PACKETS = (
    "data methods teacher train evaluate measure serve storage report plan adapters sweep".split()
)


def sources(*packages: str) -> list[pathlib.Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def exists(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports(path: pathlib.Path) -> Iterator[str]:
    """The project's modules that a file imports, in functions too, as "models.config"."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            # `from package import module` imports the module.
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [m if exists(m) else node.module for m in members]
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(module: str) -> str:
    """kvpacket_jax.serve.build is of kvpacket_jax.serve, as kvpacket_jax.teacher is of itself."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("package", ["models", "kvpacket_jax"])
def test_arrows_between_folders_point_one_way(package):
    graph: dict[str, set[str]] = {}
    for path in sources(package):
        folder = folder_of(module_of(path))
        targets = {folder_of(name) for name in imports(path) if name.split(".")[0] == package}
        graph.setdefault(folder, set()).update(targets - {folder})
    assert graph
    tuple(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the folders


def test_models_know_nothing_of_packets():
    for path in sources("models"):
        assert {name.split(".")[0] for name in imports(path)} <= {"models"}, path
        assert "packet" not in path.read_text("utf-8").lower().replace("kvpacket_jax", ""), path


def test_packets_know_nothing_of_what_is_done_with_them():
    above = {f"kvpacket_jax.{name}" for name in ABOVE_PACKETS}
    for path in sources("kvpacket_jax/packets"):
        assert not above & {folder_of(name) for name in imports(path)}, path


def test_nothing_imports_programs_or_tests():
    for path in sources("models", "kvpacket_jax", "configs"):
        assert not {"launch", "tests"} & {name.split(".")[0] for name in imports(path)}, path
    for path in sources("launch"):
        assert "tests" not in {name.split(".")[0] for name in imports(path)}, path
    for path in sources("tests"):
        modules = {name for name in imports(path) if name.startswith("tests.")}
        assert all(name.startswith("tests.support") for name in modules), path


def test_no_file_is_called_utils():
    assert not [path for path in sources(*PACKAGES) if re.search(r"util|helper", path.stem)]


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_serving_loads_neither_training_nor_plotting():
    loaded = loaded_by("import kvpacket_jax.serve as serve; serve.Store")
    assert "jax" in loaded and not set(HEAVY) & loaded


def test_the_front_door_is_cheap_to_import():
    assert not {"jax", "numpy", "flax"} & loaded_by("import kvpacket_jax")
