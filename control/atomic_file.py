"""Files replaced at one stroke: a reader, or a crash, meets the old one or the new one, whole."""

from __future__ import annotations

import os
from pathlib import Path

DIRECTORY_MODE = 0o755


def replace_file(path: Path, contents: bytes, mode: int) -> None:
    """Put `contents` at `path` with exactly this mode, whatever the umask, and onto the disk.

    Makes the directory where it is missing. Raises OSError, and then leaves what was there.
    """
    if not path.parent.exists():
        path.parent.mkdir(parents=True)
        path.parent.chmod(DIRECTORY_MODE)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    # The new name is on the disk only when the directory is (fsync(2)).
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
