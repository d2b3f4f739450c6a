"""A FIB and its per-peer counters as the forwarder holds them: to hand out, and for its workers."""

import mmap
import os
from collections.abc import Callable

from forwarder import shm
from forwarder.counters import Counters, per_peer_bytes
from forwarder.fib.layout import Capacity, FibMemory
from forwarder.fib.writer import FibWriter
from forwarder.path_mtu import PathMtus


class HeldFib:
    """The regions of one FIB; empty at first."""

    def __init__(self, capacity: Capacity, rows: mmap.mmap, workers: int) -> None:
        """`rows`: the workers' own counters, which outlive every FIB."""
        self.fd = shm.create("loden-fib", capacity.total_bytes)
        per_peer_bytes_wanted = per_peer_bytes(workers, capacity.adjacencies)
        self.per_peer_fd = shm.create("loden-per-peer", per_peer_bytes_wanted)
        self.readonly_fd = shm.reopen_readonly(self.fd)
        self.readonly_per_peer_fd = shm.reopen_readonly(self.per_peer_fd)
        # Read-only: it is what the workers inherit.
        self.memory = FibMemory(shm.map_readonly(self.readonly_fd), capacity)
        self.counters = Counters(rows, shm.map_writable(self.per_peer_fd), workers)
        self.path_mtus = PathMtus(self.memory, self.counters.per_peer)
        self.writer: FibWriter | None = None
        """Set when the forwarder writes the routes itself."""

    def write_here(self, own_mac: bytes, look_after_workers: Callable[[], None]) -> FibWriter:
        """Makes the forwarder the writer of this FIB.

        `own_mac` as in FibWriter.  `look_after_workers` is called while it waits for them: in our
        one thread nobody else could see that one of them hangs.
        """
        counters = self.counters

        def is_past(generation: int) -> bool:
            look_after_workers()
            return counters.all_past(generation)

        self.writer = FibWriter(
            FibMemory(shm.map_writable(self.fd), self.memory.capacity),
            own_mac,
            is_past,
            shm.order_writes,
            counters.clear_peer,
        )
        return self.writer

    def close(self) -> None:
        """Whoever has mapped the regions keeps them."""
        for fd in (self.fd, self.per_peer_fd, self.readonly_fd, self.readonly_per_peer_fd):
            os.close(fd)
