"""What a worker may do: its descriptors, its system calls, and nothing besides.

    forked as root
      │ close_other_descriptors   its queue, its sockets, standard error
      │ drop_privileges           another user, no capabilities, and none to be had by exec
      │ load_filter               the calls of its loop; any other kills it (seccomp(2))
      ▼
    the first packet

What it works on, it got before: memory maps, and a FIB it can only read.
"""

import ctypes
import logging
import mmap
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from forwarder.capabilities import PR_SET_NO_NEW_PRIVS
from forwarder.config import ConfigError
from forwarder.identity import Identity, find_identity
from forwarder.offloads import ON, SWITCHED_OFF

try:
    import pyseccomp as seccomp
except (ImportError, RuntimeError):  # the second is its word for: there is no libseccomp
    seccomp = None

log = logging.getLogger("loden.forwarder")

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15

SYSTEM_CALLS = (
    # The loop: forwarder/libc.py.  Where there is no poll, libc uses ppoll.
    *("read", "write", "writev", "sendmsg", "sendmmsg", "recvmmsg"),
    *("poll", "ppoll", "sched_yield", "clock_gettime"),
    # Stopped and continued by somebody, such as a debugger.
    *("restart_syscall", "rt_sigreturn"),
    # The interpreter around it: memory, the lock, an exception's way out, the end.
    *("brk", "munmap", "mremap", "madvise", "futex", "rt_sigprocmask"),
    *("getpid", "gettid", "exit", "exit_group"),
)
"""Allowed with any argument.  Descriptors stand for what may be read and written."""

API_KILL_PROCESS, API_SPEC_ALLOW = 3, 4
"""libseccomp's levels of what a kernel can: seccomp_api_get(3)."""


@dataclass(frozen=True)
class Sandbox:
    """What the workers are confined to."""

    identity: Identity | None
    """None: they stay who the forwarder is, which is unprivileged itself."""
    filter_state: str = ON
    """Of the filter of system calls: on, or why not."""


def prepare(user: str, wants_filter: bool) -> Sandbox:
    """What workers are to be confined to on this host.  Raises ConfigError for the user."""
    state = (why_no_filter() or ON) if wants_filter else SWITCHED_OFF
    if state not in (ON, SWITCHED_OFF):
        log.warning("the workers' system calls are not filtered: %s", state)
    try:
        return Sandbox(find_identity(user), state)
    except ValueError as error:
        raise ConfigError(f"user: {error}") from None


def why_no_filter() -> str | None:
    """Why system calls cannot be filtered on this host; None: they can."""
    if seccomp is None:
        return "libseccomp is not installed"
    if seccomp.get_api() < API_KILL_PROCESS:
        return "refused by this kernel"
    return None


def close_other_descriptors(kept: Iterable[int]) -> None:
    """Closes what the forwarder has open for itself and the other workers.

    Among it are a FIB that can be written, and the connections control gives its orders by.
    """
    keep = {0, 1, 2, *kept}
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                continue  # the one that listed them


def drop_privileges(identity: Identity | None) -> None:
    """Becomes an unprivileged user for good, and dies with the forwarder.

    `identity` None (the forwarder itself is unprivileged): only what needs no privilege.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if identity is not None:
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)  # clears all capabilities
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    prctl(PR_SET_NAME, b"loden-worker", 0, 0, 0)
    # Last: the kernel forgets it when credentials change.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def load_filter() -> None:
    """From here on any call but those allowed ends this process with SIGSYS.  Raises OSError."""
    calls = seccomp.SyscallFilter(seccomp.KILL_PROCESS)
    calls.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    if seccomp.get_api() >= API_SPEC_ALLOW:
        # No foreign code runs here: before Linux 5.16 a filter would cost the mitigation of
        # speculative store bypass, which is dear to copy loops.
        calls.set_attr(seccomp.Attr.CTL_SSB, 1)
    for name in SYSTEM_CALLS:
        calls.add_rule(seccomp.ALLOW, name)
    # Memory for data, not for code; no descriptor can be mapped.
    prot, flags = 2, 3
    not_executable = seccomp.Arg(prot, seccomp.MASKED_EQ, mmap.PROT_EXEC, 0)
    anonymous = seccomp.Arg(flags, seccomp.MASKED_EQ, mmap.MAP_ANONYMOUS, mmap.MAP_ANONYMOUS)
    calls.add_rule(seccomp.ALLOW, "mmap", not_executable, anonymous)
    calls.add_rule(seccomp.ALLOW, "mprotect", not_executable)
    # abort(3) signals itself: a crash shall look like one.
    itself = seccomp.Arg(0, seccomp.EQ, os.getpid())
    calls.add_rule(seccomp.ALLOW, "tgkill", itself)
    calls.load()
