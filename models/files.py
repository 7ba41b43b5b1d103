"""Files that are written whole or not at all."""

import pathlib
import uuid

from etils import epath


def write_whole(path: pathlib.Path | epath.Path, content: str | bytes) -> None:
    """Writes a file, and its folder, so that a reader sees either the old or the new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)
