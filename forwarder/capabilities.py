"""Linux capabilities (capabilities(7)): a process keeps the few it needs, and no way back."""

import ctypes
import enum
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

# linux/prctl.h, linux/capability.h
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
_VERSION_3 = 0x20080522
"""Sets are two words of 32 bits: capability n is bit n % 32 of word n // 32."""


class Capability(enum.IntEnum):
    """Those that one of our processes has a use for, numbered as the kernel does."""

    DAC_READ_SEARCH = 2
    """Read all files: kept only where ours lie in a folder that is closed to plain root."""
    KILL = 5
    """End a worker that hangs, which is another user's process."""
    SETGID = 6
    SETUID = 7
    """Become the workers' user."""
    SETPCAP = 8
    """Shrink the bounding set."""
    NET_BIND_SERVICE = 10
    """Ports below 1024."""
    NET_ADMIN = 12
    """Devices, addresses, routes, packet filter, large socket buffers."""
    NET_RAW = 13
    """Watch the underlay for the probe of the tunnel-GSO path."""


OF_FORWARDER = frozenset(
    {
        Capability.NET_ADMIN,
        Capability.NET_RAW,
        Capability.NET_BIND_SERVICE,
        Capability.SETUID,
        Capability.SETGID,
        Capability.KILL,
    }
)
"""All that the forwarder keeps: devices and sockets, and workers to start and to end."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Word(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def has(capability: Capability) -> bool:
    """Whether the calling thread may do now what this capability stands for."""
    return bool(_read()[capability // 32].effective >> capability % 32 & 1)


def keep_only(wanted: Iterable[Capability]) -> None:
    """Gives up all other capabilities, for good, and for all that is started from here.

    Concerns the calling thread alone: to be called while there is no other.  Raises OSError.
    """
    kept = frozenset(wanted)
    if has(Capability.SETPCAP):
        _shrink_bounding_set(kept)
    # Without SETPCAP, too, nothing that is executed has more than we have.
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    words = _read()
    for index, word in enumerate(words):
        mask = sum(1 << number % 32 for number in kept if number // 32 == index)
        word.permitted &= mask
        word.effective = word.permitted
        word.inheritable = 0
    _check(_libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), words))


def _shrink_bounding_set(kept: frozenset[Capability]) -> None:
    """Of what this bounds, root gets everything with the next program it executes."""
    number = 0
    while _libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) >= 0:  # -1: past the last there is
        if number not in kept:
            _check(_libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0))
        number += 1


def to_read(*files: str | Path | None) -> frozenset[Capability]:
    """What root needs to go on reading its program and `files` when all else is given up.

    Nothing for files of root's own or open to all; DAC_READ_SEARCH for a checkout in somebody's
    home, or for another user's key.
    """
    own = (sys.prefix, Path(__file__).parent)
    paths = [Path(path).absolute() for path in (*own, *files) if path is not None]
    steps = {step for path in paths for step in (path, *path.parents)}
    if os.geteuid() != 0 or all(map(_is_open_to_root, steps)):
        return frozenset()
    return frozenset({Capability.DAC_READ_SEARCH})


def _is_open_to_root(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return True  # whoever opens it will say what is wrong with it
    if stat.S_ISDIR(status.st_mode):
        owner, group, others = stat.S_IXUSR, stat.S_IXGRP, stat.S_IXOTH
    else:
        owner, group, others = stat.S_IRUSR, stat.S_IRGRP, stat.S_IROTH
    if status.st_uid == 0:
        return bool(status.st_mode & owner)
    return bool(status.st_mode & (group if status.st_gid == 0 else others))


def _read() -> "ctypes.Array[_Word]":
    words = (_Word * 2)()
    _check(_libc.capget(ctypes.byref(_Header(_VERSION_3, 0)), words))
    return words


def _check(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"capabilities: {os.strerror(error)}")
