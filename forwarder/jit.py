"""Compiling: the one decorator of the hot loops, and where their machine code is kept.

Numba invalidates a cached function by the modification time of its own file only, although the
functions it calls from other files are compiled into it.  So the cache folder carries a digest of
every source file of this package: changed code can never meet stale machine code.
"""

import contextlib
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
import numpy as np

FOLDERS_KEPT = 4
"""Of versions that are not in use any more, beside our own."""
A_DAY_S = 24 * 3600.0
_FOLDER_NAME = re.compile(r"kernels-[0-9a-f]{16}")

Function = TypeVar("Function", bound=Callable[..., Any])

if sys.byteorder != "little":
    raise ImportError("loden's data path is written for little-endian machines (x86-64, arm64)")


def _sources_digest() -> str:
    """Names all that the machine code depends on: our sources, Numba and its settings, NumPy."""
    digest = hashlib.sha256()
    # Numba itself would load code without bounds checks where NUMBA_BOUNDSCHECK asks for them.
    checks = f"bounds checked: {numba.config.BOUNDSCHECK}"
    for part in (numba.__version__, llvmlite.__version__, np.__version__, sys.version, checks):
        digest.update(part.encode())
    package = Path(__file__).parent
    for source in sorted(package.rglob("*.py")):
        digest.update(source.relative_to(package).as_posix().encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _candidate_folders() -> Iterator[Path]:
    """Where a cache may be kept, best first; a read-only installation is no obstacle to any."""
    for variable in ("NUMBA_CACHE_DIR", "CACHE_DIRECTORY"):  # the second is systemd's
        if named := os.environ.get(variable):
            yield Path(named)
    if os.geteuid() == 0:
        yield Path("/var/cache/loden")
    else:
        home_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        yield Path(home_cache) / "loden"
    yield Path(tempfile.gettempdir()) / f"loden-cache-{os.geteuid()}"


def _is_ours_alone(folder: Path) -> bool:
    """Machine code is loaded from here: nobody else may be able to write to it."""
    status = folder.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def choose_cache_folder() -> Path | None:
    """The first folder that can be written and that belongs to us; None: compile at each start."""
    for candidate in _candidate_folders():
        folder = candidate / f"kernels-{_sources_digest()}"
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError:
            continue
        if _is_ours_alone(folder) and os.access(folder, os.W_OK):
            return folder
    return None


def prune_cache(folder: Path) -> None:
    """Notes that `folder` is in use, and removes its siblings that were not for a while.

    Each change of a source file makes a new folder.  Another loden may be at work in one of the
    others, so those used last are kept, and every one of the last day.
    """
    with contextlib.suppress(OSError):  # another loden that starts now may prune as well
        os.utime(folder)
        siblings = {
            sibling: sibling.lstat().st_mtime
            for sibling in folder.parent.iterdir()
            if sibling != folder and _FOLDER_NAME.fullmatch(sibling.name)
        }
        by_use = sorted(siblings, key=siblings.__getitem__, reverse=True)
        for sibling in by_use[FOLDERS_KEPT:]:
            if time.time() - siblings[sibling] > A_DAY_S and _is_ours_alone(sibling):
                shutil.rmtree(sibling, ignore_errors=True)


CACHE_FOLDER = choose_cache_folder()
if CACHE_FOLDER is not None:
    numba.config.CACHE_DIR = str(CACHE_FOLDER)


_OPTIONS = {"cache": CACHE_FOLDER is not None, "nogil": True, "_nrt": False}


def kernel(function: Function) -> Function:
    """Marks a function over NumPy arrays to be compiled by Numba on its first call.

    With NUMBA_DISABLE_JIT=1 it stays the Python it is written in (debugger, coverage), with
    NUMBA_BOUNDSCHECK=1 every index is checked (fuzzing).

    No kernel allocates, so Numba's reference counting is switched off: it would count each use of
    a batch's column with two locked instructions, a third of the whole run time when measured.
    """
    compiled: Function = numba.njit(**_OPTIONS)(function)
    return compiled


def step(function: Function) -> Function:
    """Marks a kernel that is called once for each packet with a whole batch as its argument.

    It becomes part of its caller: a batch is passed as the words of all its columns, and to push
    two hundred of those costs more than most steps do.
    """
    compiled: Function = numba.njit(forceinline=True, **_OPTIONS)(function)
    return compiled
