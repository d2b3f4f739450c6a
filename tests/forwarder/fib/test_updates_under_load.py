"""A writer at full speed against a reader without locks: no lookup may reach half a route.

The reader is another process, as a worker is: compiled lookups on a read-only map, and the
generation it has seen published at every turn.  All that a row says follows from one number, so
that a row which is half an old one and half a new one contradicts itself.
"""

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
import pytest

from forwarder import shm
from forwarder.arrays import Bytes, Int, Longs
from forwarder.counters import IDLE
from forwarder.fib.layout import GENERATION_WORD, Capacity, FibView, Kind
from forwarder.fib.lookup import lookup_ipv4, lookup_ipv6
from forwarder.fib.routes import NextHop, Prefix
from forwarder.fib.writer import FibFull, FibWriter
from forwarder.jit import kernel
from forwarder.wire.ip import load32
from tests.forwarder.fibs import Workers, make_fib, vtep

SECONDS = 1.5
NETWORK = 0x0A000000
TURNS_PER_LOOK = 20_000

# Columns of what reader and writer share.
SEEN, TURNS, FAULT, ROW, STOP, READY = range(6)


@kernel
def is_whole(row: Bytes) -> bool:
    """Whether a row is that of fibs.vtep(n): MAC, outer address and the rest from the same n."""
    number = load32(row, 10)  # the last four bytes of the inner destination MAC
    address = load32(row, 28)  # the sockaddr's
    return (
        row[22] == Kind.REMOTE
        and row[23] == 16
        and row[0] == 0x08
        and row[8] == 0x02
        and row[9] == 0x01
        and address == 0xC0000000 + number
        and row[24] == 2
    )


@kernel
def read_for_a_while(fib: FibView, shared: Longs, ipv6: Bytes, turns: Int) -> None:
    """`turns` turns of a worker: publish the generation, look up, use the rows reached."""
    for turn in range(turns):
        shared[SEEN] = np.int64(fib.header[GENERATION_WORD])
        for step in range(16):
            index = lookup_ipv4(fib, NETWORK + ((turn * 16 + step) & 0x3FF))
            if not is_whole(fib.adjacencies[index]):
                shared[FAULT], shared[ROW] = 4, index
                return
        index = lookup_ipv6(fib, ipv6, (turn & 3) * 16)
        if not is_whole(fib.adjacencies[index]):
            shared[FAULT], shared[ROW] = 6, index
            return
        shared[TURNS] += 1


def read(fib: FibView, shared: Longs) -> None:
    """The reader process."""
    shm.register_reader()
    addresses = b"".join(((0x20010DB8 << 96) | n << 64).to_bytes(16, "big") for n in range(4))
    ipv6 = np.frombuffer(bytearray(addresses), np.uint8)
    read_for_a_while(fib, shared, ipv6, 0)  # compiled before the race begins
    shared[SEEN], shared[READY] = IDLE, 1
    while not shared[STOP] and not shared[FAULT]:
        read_for_a_while(fib, shared, ipv6, TURNS_PER_LOOK)
        shared[SEEN] = IDLE


class ReaderProgress(Workers):
    """The writer waits for what the reader has published."""

    def __init__(self, shared: Longs) -> None:
        super().__init__()
        self._shared = shared

    def all_past(self, generation: int) -> bool:
        return bool(self._shared[SEEN] >= generation)


@pytest.fixture
def shared() -> Longs:
    """Words that the reader, once forked, shares with us."""
    columns: Longs = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.int64)
    return columns


@contextlib.contextmanager
def running(reader: Callable[[], None], shared: Longs) -> Iterator[None]:
    """The reader in a process of its own; it is gone when this is left."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            reader()
            os._exit(0)
        os._exit(1)
    try:
        deadline = time.monotonic() + 30
        while not shared[READY]:
            assert time.monotonic() < deadline, "the reader does not start"
        yield
    finally:
        shared[STOP] = 1
        assert os.waitpid(pid, 0)[1] == 0, "the reader died"


def test_reader_never_reaches_half_a_route(shared: Longs) -> None:
    capacity = Capacity(groups=16, ipv6_ranges=64, adjacencies=32, routes=64)
    fib = make_fib(capacity, ReaderProgress(shared))
    shared[SEEN] = IDLE
    # Nested, so that entries and groups change hands; the widest two stay, whatever happens.
    always = [Prefix(4, NETWORK, 22), Prefix(6, 0x20010DB8 << 96, 32)]
    ipv4 = [Prefix(4, NETWORK + n, 32) for n in range(0, 512, 64)]
    ipv4 += [Prefix(4, NETWORK + 512, 24), Prefix(4, NETWORK + 256, 25)]
    ipv6 = [Prefix(6, (0x20010DB8 << 96) | n << 64, 64) for n in range(4)]
    fib.writer.apply({prefix: vtep(1) for prefix in always})
    with running(lambda: read(fib.view, shared), shared):
        applied, refused = write_for(SECONDS, fib.writer, always, [*ipv4, *ipv6])
    assert not shared[FAULT], f"IPv{shared[FAULT]}: adjacency row {shared[ROW]} was half written"
    assert applied > 500
    assert refused < applied
    assert shared[TURNS] > 10_000


def write_for(
    seconds: float, writer: FibWriter, always: list[Prefix], others: list[Prefix]
) -> tuple[int, int]:
    """Rewrites routes as fast as it can; every change has a next hop never used before.

    Returns how often a change was applied, and how often there was no room for it yet.
    """
    random = Random(1)
    applied, refused = 0, 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        hop = vtep(2 + applied)
        changes: dict[Prefix, NextHop | None] = {random.choice(always): hop}
        for prefix in random.sample(others, 3):
            changes[prefix] = hop if random.random() < 0.6 else None
        try:
            applied += writer.apply(changes) > 0
        except FibFull:  # all rows but those in use wait for the reader
            refused += 1
    return applied, refused
