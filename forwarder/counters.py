"""What the workers count, in shared memory: one row per worker, written by that worker alone.

    rows         int64[workers, COLUMNS]            page-aligned; columns named below
    per_peer     int64[workers, adjacencies, 4]     packets and bytes, out and in

Two regions: the rows live as long as the forwarder; the per-peer counters belong to the rows of
one FIB's adjacency table and are made anew with it.  The FIB's writer clears those of an adjacency
that no worker holds any more, before it is used again: each peer's begin at 0.  Readers (status,
metrics) sum over workers; they may see a packet counted whose bytes are not yet.
"""

import mmap
from enum import IntEnum
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from forwarder.arrays import Longs


class Drop(IntEnum):
    """Why a packet was dropped: the counter's name, and the sentence that explains it."""

    sentence: str

    def __new__(cls, value: int, sentence: str) -> "Drop":
        member = int.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member

    NONE = 0, "not dropped"
    # Outbound: from a pod, on its way to another node.
    MALFORMED = 1, "what came from the overlay device is no sound IPv4 or IPv6 packet"
    NO_ROUTE = 2, "no route for the inner destination"
    LOCAL_DESTINATION = 3, "the inner destination is on this node: its bridge has no such network"
    BLACKHOLE = 4, "the route of the inner destination says to drop"
    TOO_BIG = 5, "the packet does not fit the path and must not be fragmented"
    TOO_MANY_SEGMENTS = 6, "the segment size of a superpacket is absurdly small"
    NO_UNDERLAY = 7, "the next hop's address family is not configured on this node's underlay"
    SEND_BUFFER_FULL = 8, "the socket's send buffer stayed full"
    SEND_NO_BUFFERS = 9, "the underlay device's queue was full"
    SEND_UNREACHABLE = 10, "this node has no way to the next hop's address"
    SEND_REFUSED = 11, "the host's firewall refused to send"
    SEND_FAILED = 12, "sending failed for another reason"
    HEADERS_TOO_LONG = 28, "a superpacket's headers, with their options, exceed 234 bytes"
    # Inbound: from the underlay, on its way to a pod.
    TRUNCATED = 13, "the datagram is too short for VXLAN and Ethernet headers"
    NO_VNI_FLAG = 14, "the VXLAN header's I flag is not set"
    RESERVED_BITS = 15, "reserved bits of the VXLAN header are set"
    WRONG_VNI = 16, "the VNI is not ours"
    NOT_OUR_MAC = 17, "the inner destination MAC is not our VTEP's"
    OWN_SOURCE_MAC = 18, "the inner source MAC is our own VTEP's: a loop"
    NOT_IP = 19, "the inner frame carries neither IPv4 nor IPv6"
    INNER_MALFORMED = 20, "the inner IP header is not sound"
    UNKNOWN_VTEP = 21, "the outer source is not a VTEP we know"
    SPOOFED_SOURCE = 22, "the inner source is not routed to the VTEP that sent it"
    NOT_OUR_DESTINATION = 23, "the inner destination is not on this node"
    ECN_INVALID = 24, "outer ECN says congestion where the inner packet cannot (RFC 6040)"
    TUN_WRITE_INVALID = 25, "the kernel refused what was written to the overlay device"
    TUN_DOWN = 26, "the overlay device is down"
    TUN_NO_BUFFERS = 27, "the kernel had no memory for a packet to the overlay device"


OUTBOUND_DROPS = frozenset(takewhile(lambda drop: drop is not Drop.TRUNCATED, Drop)) - {Drop.NONE}
"""The reasons between a pod and the underlay; the others are between the underlay and a pod."""


class Total(IntEnum):
    """The first columns of a worker's row: packets are inner packets as pods see them."""

    OUT_PACKETS = 0
    OUT_BYTES = 1
    IN_PACKETS = 2
    IN_BYTES = 3
    OUT_SEGMENTS = 4
    """VXLAN datagrams sent."""
    OUT_MESSAGES = 5
    """Messages handed to the kernel; each may carry many datagrams (UDP_SEGMENT)."""
    OUT_CALLS = 6
    """sendmmsg system calls."""
    IN_SEGMENTS = 7
    IN_MESSAGES = 8
    IN_CALLS = 9
    TUN_READS = 10
    TUN_WRITES = 11
    TURNS = 12
    POLLS = 13
    """Times the worker blocked for want of work."""
    HEARTBEAT_NS = 14
    """CLOCK_MONOTONIC when the worker last passed its loop; it does so once a second at least."""
    GENERATION_SEEN = 15
    """The FIB generation read at the start of the present turn, or IDLE."""
    PID = 16
    CPU = 17
    OUT_WHOLE = 18
    """Superpackets that left whole, for the NIC to cut (tunnel GSO)."""
    ICMP_SENT = 19
    """Unreachable and too-big messages sent to pods."""


IDLE = (1 << 62) - 1
"""In GENERATION_SEEN: holds no index of the FIB.  Later than any generation."""

BUCKETS = 12
"""Batch sizes are counted in powers of two: 1, 2, 3-4, 5-8, ..., more than 1024."""

DROPS_AT = 32
OUT_BATCHES_AT = DROPS_AT + 64
IN_BATCHES_AT = OUT_BATCHES_AT + BUCKETS
COLUMNS = mmap.PAGESIZE // 8
assert max(Total) < DROPS_AT
assert max(Drop) < 64
assert IN_BATCHES_AT + BUCKETS <= COLUMNS

# Columns of the per-peer counters.
PEER_OUT_PACKETS, PEER_OUT_BYTES, PEER_IN_PACKETS, PEER_IN_BYTES = range(4)
PEER_COLUMNS = ("out_packets", "out_bytes", "in_packets", "in_bytes")


def rows_bytes(workers: int) -> int:
    """Size of the region of rows."""
    return workers * COLUMNS * 8


def per_peer_bytes(workers: int, adjacencies: int) -> int:
    """Size of the region of per-peer counters; sparse.  `adjacencies`: fib.layout.Capacity's."""
    return workers * adjacencies * 4 * 8


class CounterRow(NamedTuple):
    """One worker's counters, as its compiled loop sees them."""

    row: Longs
    """int64[COLUMNS]"""
    per_peer: Longs
    """int64[adjacencies, 4]"""


class Counters:
    """The counters of all workers, mapped from their two regions.

    Without `per_peer` (there is no FIB yet) the per-peer counters have no rows.
    """

    def __init__(self, rows: mmap.mmap, per_peer: mmap.mmap | None, workers: int) -> None:
        self.rows: Longs = np.frombuffer(rows, np.int64, workers * COLUMNS).reshape(-1, COLUMNS)
        self.per_peer: Longs = np.frombuffer(per_peer or b"", np.int64).reshape(
            workers, -1 if per_peer else 0, 4
        )

    def of_worker(self, worker: int) -> CounterRow:
        return CounterRow(self.rows[worker], self.per_peer[worker])

    def all_past(self, generation: int) -> bool:
        """Whether no worker can still hold an index older than `generation` (QSBR)."""
        return bool((self.rows[:, Total.GENERATION_SEEN] >= generation).all())

    def clear_peer(self, adjacency: int) -> None:
        """For the FIB's writer, between two uses of an adjacency row."""
        self.per_peer[:, adjacency] = 0

    def totals(self, worker: int | None = None) -> dict[str, int]:
        """What can be summed, of one worker or of all."""
        not_sums = (Total.HEARTBEAT_NS, Total.GENERATION_SEEN, Total.PID, Total.CPU)
        rows = self._rows_of(worker)
        return {t.name.lower(): int(rows[:, t].sum()) for t in Total if t not in not_sums}

    def drops(self, worker: int | None = None) -> dict[str, int]:
        """Dropped packets by reason, all reasons, of one worker or of all."""
        rows = self._rows_of(worker)
        return {d.name.lower(): int(rows[:, DROPS_AT + d].sum()) for d in Drop if d != Drop.NONE}

    def batches(self, worker: int) -> dict[str, list[int]]:
        """Histograms of one worker's batch sizes, outbound and inbound, BUCKETS counts each."""
        return {
            way: self.rows[worker, at : at + BUCKETS].tolist()
            for way, at in (("out", OUT_BATCHES_AT), ("in", IN_BATCHES_AT))
        }

    def _rows_of(self, worker: int | None) -> Longs:
        return self.rows if worker is None else self.rows[worker : worker + 1]
