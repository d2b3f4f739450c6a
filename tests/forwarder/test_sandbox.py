"""What a confined process can do and what ends it: tried for real, in children of the tests."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from forwarder import libc as libc_module
from forwarder import logs, sandbox, shm
from forwarder.identity import Identity

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
NOBODY = Identity(65534, 65534)
CLOCK_GETTIME = {"x86_64": 228, "aarch64": 113}[os.uname().machine]
"""The system call, for where it is not the vDSO's."""
PROT_READ_WRITE_EXEC = 7
PTRACE_ATTACH = 16
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p


def in_a_child(confine: Callable[[], None], deed: Callable[[], object]) -> int:
    """How a process that did it ended: its exit status, 0 if all went well; -N: by signal N."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            faulthandler.disable()  # pytest's, which does more at a crash than a worker may
            confine()
            status = 0 if deed() is not False else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def confine_calls() -> None:
    sandbox.load_filter()


def confine_wholly() -> None:
    sandbox.drop_privileges(NOBODY)
    sandbox.load_filter()


def map_memory(protection: int, flags: int, fd: int) -> bool:
    failed = ctypes.c_void_p(-1).value
    return bool(libc.mmap(None, mmap.PAGESIZE, protection, flags, fd, 0) != failed)


def overrun() -> None:
    np.zeros(1)[1]


def say_why_it_fails() -> bool:
    """As a worker does that meets an exception."""
    try:
        overrun()
    except IndexError as error:
        return "test_sandbox.py" in logs.where(error.__traceback__)
    return False


ALLOWED: dict[str, Callable[[], object]] = {
    "memory": lambda: np.ones(5_000_000).sum() == 5_000_000,
    "an exception": say_why_it_fails,
    "standard error": lambda: os.write(2, b"") == 0,
    "the clock": lambda: libc.syscall(CLOCK_GETTIME, 1, 0) == -1,  # EFAULT
}

REFUSED: dict[str, Callable[[], object]] = {
    "open": lambda: Path("/etc/hostname").read_text(),
    "open what is not there": lambda: os.open("/no/such/file", os.O_RDONLY),
    "list": lambda: os.listdir("/"),
    "socket": socket.socket,
    "bind": lambda: libc.bind(0, None, 0),
    "connect": lambda: libc.connect(0, None, 0),
    "ptrace": lambda: libc.ptrace(PTRACE_ATTACH, os.getppid(), None, None),
    "mount": lambda: libc.mount(b"none", b"/mnt", b"tmpfs", 0, None),
    "unshare": lambda: libc.unshare(0x10000000),
    "setuid": lambda: os.setuid(0),
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "fork": os.fork,
    "kill": lambda: os.kill(os.getppid(), 0),
    "ioctl": lambda: libc.ioctl(0, 0x5401, None),
    "prctl": lambda: libc.prctl(1, 0, 0, 0, 0),
    "memory for code": lambda: map_memory(
        PROT_READ_WRITE_EXEC, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1
    ),
    "memory made code": lambda: libc.mprotect(None, mmap.PAGESIZE, PROT_READ_WRITE_EXEC),
    "a descriptor mapped": lambda: map_memory(mmap.PROT_READ, mmap.MAP_SHARED, 0),
    "another filter": sandbox.load_filter,
}


@pytest.fixture(autouse=True)
def _filters_can_be_loaded() -> None:
    assert sandbox.why_no_filter() is None, "install libseccomp2"


@pytest.mark.parametrize("deed", ALLOWED.values(), ids=ALLOWED.keys())
def test_filter_allows_what_the_loop_needs(deed: Callable[[], object]) -> None:
    assert in_a_child(confine_calls, deed) == 0


@pytest.mark.parametrize("deed", REFUSED.values(), ids=REFUSED.keys())
def test_filter_ends_a_process_that_does_more(deed: Callable[[], object]) -> None:
    assert in_a_child(confine_calls, deed) == -signal.SIGSYS


def test_filter_allows_every_call_that_compiled_code_declares() -> None:
    declared = re.findall(r'_external\("(\w+)"', Path(libc_module.__file__).read_text())
    assert "recvmmsg" in declared
    assert set(declared) <= {*sandbox.SYSTEM_CALLS}


def test_crash_is_told_apart_from_a_violation() -> None:
    assert in_a_child(confine_calls, os.abort) == -signal.SIGABRT


@needs_root
def test_open_sockets_and_devices_go_on_working() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        assert in_a_child(confine_wholly, lambda: near.sendmsg([b"in", b"side"])) == 0
        assert far.recv(100) == b"inside"


@needs_root
@pytest.mark.parametrize(
    "deed",
    [
        lambda: os.setuid(0),
        lambda: Path("/etc/shadow").read_text(),
        lambda: socket.sethostname("taken"),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW),
        lambda: libc.ptrace(PTRACE_ATTACH, os.getppid(), None, None) == 0,
        lambda: libc.mount(b"none", b"/mnt", b"tmpfs", 0, None) == 0,
    ],
    ids=["setuid", "open", "sethostname", "raw socket", "ptrace", "mount"],
)
def test_without_a_filter_the_kernel_refuses_what_needs_privilege(
    deed: Callable[[], object],
) -> None:
    assert in_a_child(lambda: sandbox.drop_privileges(NOBODY), deed) == 1


def test_descriptors_of_others_are_closed() -> None:
    """A FIB that can be written is one of them."""
    fib = shm.create("fib", mmap.PAGESIZE)
    keeps = os.eventfd(0)
    memory = shm.map_writable(fib)  # which has a descriptor of its own

    def still_open() -> set[int]:
        return {fd for fd in range(3, 1024) if is_open(fd)}

    result = in_a_child(
        lambda: sandbox.close_other_descriptors({keeps}), lambda: still_open() == {keeps}
    )
    memory.close()
    os.close(keeps)
    os.close(fib)
    assert result == 0


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "seccomp", None)
    assert sandbox.why_no_filter() == "libseccomp is not installed"
