"""The identity of a model: SHA-256 over its config and the bytes that its weights came from.

Not over the loaded arrays: those differ by dtype and by device, the model does not.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib

from models.config import ModelConfig
from models.files import write_whole

# Of ModelConfig; not part of the model.
RUN_CHOICES = ("scan_layers", "remat", "query_block", "mesh")


def digest(value) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def model_fingerprint(config: ModelConfig, folder: pathlib.Path, cache_dir: pathlib.Path) -> str:
    """SHA-256 of the config and of the source files' bytes (GGUF or safetensors as downloaded)."""
    converted = folder / "source.json"
    if converted.exists():
        sources = [json.loads(converted.read_text())["sha256"]]
    else:
        files = sorted(folder.glob("*.safetensors"))
        sources = [file_digest(f, cache_dir) for f in files]
    return digest({"config": constants(config), "sources": sources})


def constants(config: ModelConfig) -> dict:
    """A config's properties of the model, without the choices of how to run it; JSON-able."""
    plain = dataclasses.replace(config, mesh=None)  # asdict copies, and devices cannot be copied
    fields = {k: v for k, v in dataclasses.asdict(plain).items() if k not in RUN_CHOICES}
    return fields | {"rope_type": type(config.rope).__name__}


def file_digest(path: pathlib.Path, cache_dir: pathlib.Path) -> str:
    """SHA-256 of a file, remembered in `cache_dir` by its path, size and time of change."""
    stat = path.stat()
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    digests_path = cache_dir / "digests.json"
    digests = _read(digests_path)
    if key not in digests:
        with path.open("rb") as file:
            digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
        with contextlib.suppress(OSError):  # a read-only home: hash again next time
            write_whole(digests_path, json.dumps(digests, indent=1))
    return digests[key]


def _read(path: pathlib.Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
