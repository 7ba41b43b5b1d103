"""Files that are written whole or not at all, and are still there after a power cut."""

import contextlib
import errno
import os
import pathlib
import platform
import uuid

from etils import epath

AnyPath = pathlib.Path | epath.Path
BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")  # on Linux
NOT_SYNCED = (errno.EINVAL, errno.ENOTSUP)  # of folders, on file systems that cannot do it


def write_whole(path: AnyPath, content: str | bytes) -> None:
    """Writes a file, and its folder, so that a reader sees either the old or the new content.

    The only way in which the project writes a file that it reads again. Where it fails, the old
    content stays and nothing is left beside it. Raises OSError.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: AnyPath, path: AnyPath) -> None:
    """Gives a finished file its name: its bytes are on the disk before, the name afterwards."""
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def append_line(path: pathlib.Path, line: str) -> None:
    """Appends a line to a local file and waits until it is on the disk.

    A process that is killed meanwhile leaves a part of it at most, without its end: the next line
    begins anew, so that only the cut one is lost.
    """
    is_new = not path.exists()
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
        is_cut = size and file.read(1) != b"\n"
        file.write(b"\n" * bool(is_cut) + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(path.parent)


def make_folder(folder: AnyPath) -> None:
    """Makes a folder, and those above it, and waits until they are on the disk."""
    if not is_local(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return
    missing = []
    while not folder.exists() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: AnyPath) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk.

    Object stores (gs://…) keep what they have taken, and have no such call.
    """
    if not is_local(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SYNCED:
            raise
    finally:
        os.close(descriptor)


def is_local(path: AnyPath) -> bool:
    """Whether a path is of this machine's file systems, and not of an object store."""
    return "://" not in str(path)


def this_system() -> str:
    """Names the running system since it was started: its processes see each other's locks."""
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text().strip()
    return f"{platform.node()} {uuid.getnode()}"
