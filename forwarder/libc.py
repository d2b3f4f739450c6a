"""The few system calls of the data path, callable from compiled code.

Declared as external symbols, which Numba's on-disk cache keeps (a ctypes function pointer would
forbid caching).  With NUMBA_DISABLE_JIT=1 the same names are ctypes functions.

Each returns what libc's function returns; on -1 see `errno()`.  Addresses are plain integers.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from forwarder.arrays import Int, Longs
from forwarder.jit import kernel

_loaded = ctypes.CDLL(None, use_errno=True)
_CTYPES = {types.intp: ctypes.c_ssize_t, types.int32: ctypes.c_int}


def _external(name: str, result: Any, *arguments: Any) -> Callable[..., Int]:
    if not numba.config.DISABLE_JIT:
        function: Callable[..., Int] = types.ExternalFunction(name, result(*arguments))
        return function
    function = getattr(_loaded, name)
    function.restype = _CTYPES[result]  # type: ignore[attr-defined]  # a ctypes function
    function.argtypes = [_CTYPES[argument] for argument in arguments]  # type: ignore[attr-defined]
    return function


_int, _word = types.int32, types.intp

read = _external("read", _word, _int, _word, _word)
"""(fd, address, bytes)"""
write = _external("write", _word, _int, _word, _word)
"""(fd, address, bytes)"""
writev = _external("writev", _word, _int, _word, _int)
"""(fd, address of iovecs, their number)"""
sendmsg = _external("sendmsg", _word, _int, _word, _int)
"""(fd, address of a msghdr, flags)"""
sendmmsg = _external("sendmmsg", _int, _int, _word, _int, _int)
"""(fd, address of mmsghdrs, their number, flags)"""
recvmmsg = _external("recvmmsg", _int, _int, _word, _int, _int, _word)
"""(fd, address of mmsghdrs, their number, flags, address of a timeout)"""
poll = _external("poll", _int, _word, _word, _int)
"""(address of pollfds, their number, timeout in ms)"""
sched_yield = _external("sched_yield", _int)
"""()"""
_clock_gettime = _external("clock_gettime", _int, _int, _word)

if numba.config.DISABLE_JIT:
    errno: Callable[[], Int] = ctypes.get_errno
else:
    _errno_location = types.ExternalFunction("__errno_location", types.CPointer(types.int32)())

    @kernel
    def errno() -> Int:
        """The error number of the last call that returned -1."""
        return np.int64(_errno_location()[0])


CLOCK_MONOTONIC = 1
EINTR = 4
EIO = 5
EAGAIN = 11
ENOMEM = 12
EINVAL = 22
EMSGSIZE = 90
ENOBUFS = 105
EPERM = 1
EACCES = 13
ENETDOWN = 100
ENETUNREACH = 101
EHOSTUNREACH = 113
EBADFD = 77
"""What a TUN device answers when its queue is detached or the device has gone."""

POLLIN = 1
POLLOUT = 4
MSG_DONTWAIT = 0x40
MSG_TRUNC = 0x20


@kernel
def monotonic_ns(scratch: Longs) -> Int:
    """CLOCK_MONOTONIC in nanoseconds.  `scratch` is int64[2] of the caller's."""
    _clock_gettime(CLOCK_MONOTONIC, scratch.ctypes.data)
    return np.int64(scratch[0] * 1_000_000_000 + scratch[1])
