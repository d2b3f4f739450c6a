"""Shared memory as memfds: nothing to leak, nothing for a stranger to open.

A region is created once, sealed against resizing (so that no holder of the fd can make the others
fault), and handed on as a file descriptor.
"""

import ctypes
import fcntl
import mmap
import os

MEMBARRIER_SYSCALL = {"x86_64": 324, "aarch64": 283}
MEMBARRIER_CMD_GLOBAL_EXPEDITED = 1 << 1
MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED = 1 << 2

_libc = ctypes.CDLL(None, use_errno=True)


def create(name: str, size_bytes: int) -> int:
    """A sparse memfd of zeros, sealed against growing and shrinking.  `name` shows in /proc."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size_bytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def map_writable(fd: int) -> mmap.mmap:
    """Maps the whole region for its one writer."""
    return mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def map_readonly(fd: int) -> mmap.mmap:
    """Maps the whole region for a reader."""
    return mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_SHARED, mmap.PROT_READ)


def reopen_readonly(fd: int) -> int:
    """A descriptor of the same region from which no writable mapping can be made."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def _membarrier(command: int) -> None:
    number = MEMBARRIER_SYSCALL[os.uname().machine]
    if _libc.syscall(number, command, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"membarrier: {os.strerror(error)}")


def register_reader() -> None:
    """To be called by every process that reads without locks: makes `order_writes` reach it."""
    _membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED)


def order_writes() -> None:
    """All running readers see the stores made before this before any made after it.

    membarrier(2): the rare writer pays (an interrupt to each CPU), the readers need no fences.
    """
    _membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED)
