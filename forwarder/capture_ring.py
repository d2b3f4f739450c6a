"""Captured packets in shared memory: where workers put copies, and where a capture takes them.

    controls       4 KiB   what is asked for; written by the capture           (Control)
    per worker:
      positions    4 KiB   how far the ring is filled, and how far it is read  (Position)
      ring         8 MiB   records: RECORD, then the captured bytes; multiples of 64 bytes

The memory lives as long as the forwarder and is sparse: before the first capture it costs nothing.
While none runs, a worker looks at one word per batch (Control.ARMED_UNTIL_NS).

Who writes what: the capture writes the controls and Position.READ, a worker the rest of its own
positions and its ring.  A record never crosses the end of the ring: one that would, leaves a
record_bytes of 0 there and begins at the start.  A worker publishes WRITTEN after the records; the
capture reads WRITTEN, orders (shm.order_writes), and then reads the records.
"""

import mmap
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from forwarder.arrays import Bytes, Longs

RING_BYTES = 8 << 20
WORDS = mmap.PAGESIZE // 8
ADDRESSES_MAX = 2
"""So many addresses can be asked for at once: those of a conversation."""
ANY_PORT = -1


class Direction(IntEnum):
    """Which way a packet goes, seen from the node."""

    OUT = 0
    """From a pod to another node."""
    IN = 1
    """From another node to a pod."""


class Control(IntEnum):
    """Indices of `controls`: until when packets are copied, and which."""

    ARMED_UNTIL_NS = 0
    """CLOCK_MONOTONIC; 0: nothing is captured.  The capture puts it off again and again, so that
    one that was killed ends by itself; a worker that finds it past sets it to 0."""
    SNAP_BYTES = 1
    """Most bytes copied of a frame."""
    REASONS = 2
    """A bit for each counters.Drop wanted; bit 0: packets that were not dropped."""
    DIRECTIONS = 3
    """A bit for each Direction wanted."""
    PORT = 4
    """TCP or UDP port that the packet comes from or goes to; ANY_PORT: whatever it is."""
    ADDRESSES = 5
    """How many of the rows at ADDRESSES_AT are in use; the packet must match each of them."""


ADDRESSES_AT = 8
"""Rows of nine words: IP version, then address and mask as four words of 32 bits each (IPv4: one),
in host byte order.  The packet's source or its destination must match."""
ADDRESS_ROW = 9
assert max(Control) < ADDRESSES_AT


class Position(IntEnum):
    """Indices of a worker's `positions`: bytes since the beginning, not modulo the ring's size."""

    WRITTEN = 0
    """Up to here, records are whole."""
    NEXT = 1
    """Up to here, the worker has written in its present batch."""
    MISSED = 2
    """Packets that were wanted, and found no room."""
    SCRATCH = 3
    """Two words of the worker's."""
    READ = 8
    """Up to here, the capture needs nothing any more; on another cache line than the others."""


RECORD = np.dtype(
    [
        ("record_bytes", "<u4"),  # of the whole record, 0: the next one begins at the ring's start
        ("captured_bytes", "<u4"),
        ("time_ns", "<i8"),  # CLOCK_MONOTONIC
        ("original_bytes", "<u4"),
        ("direction", "u1"),
        ("reason", "u1"),  # counters.Drop
        ("padding", "u1", 2),
        ("vxlan", "u1", 8),  # inbound: the VXLAN header
        ("vtep", "u1", 32),  # sockaddr of the other node; family 0: not known
    ]
)
"""Before each captured frame: inner Ethernet header and IP packet."""
RECORD_BYTES = RECORD.itemsize
assert RECORD_BYTES == 64
VXLAN_AT = 24
VTEP_AT = 32


class CaptureRing(NamedTuple):
    """One worker's part of the memory, as its compiled loop sees it."""

    controls: Longs
    positions: Longs
    data: Bytes
    """uint8[RING_BYTES]"""
    words: Longs
    """The same memory, as int64."""


_RING_STRIDE = mmap.PAGESIZE + RING_BYTES


def memory_bytes(workers: int) -> int:
    """Size of the whole region."""
    return mmap.PAGESIZE + workers * _RING_STRIDE


def ring_start(worker: int) -> int:
    """Offset of a worker's ring in the region."""
    return mmap.PAGESIZE + worker * _RING_STRIDE + mmap.PAGESIZE


def ring_of(memory: mmap.mmap, worker: int) -> CaptureRing:
    """A worker's part of the mapped region."""
    start = ring_start(worker)
    return CaptureRing(
        controls=np.frombuffer(memory, np.int64, WORDS),
        positions=np.frombuffer(memory, np.int64, WORDS, start - mmap.PAGESIZE),
        data=np.frombuffer(memory, np.uint8, RING_BYTES, start),
        words=np.frombuffer(memory, np.int64, RING_BYTES // 8, start),
    )
