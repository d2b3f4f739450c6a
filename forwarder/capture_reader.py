"""A capture, from the side of whoever asks for it: arms the workers, takes their copies.

One capture runs at a time: it holds a lock on the memory, which the kernel releases when it dies.
The workers stop by themselves when a capture no longer says that it is there.
"""

import fcntl
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from forwarder import shm
from forwarder.capture_ring import (
    ADDRESS_ROW,
    ADDRESSES_AT,
    ADDRESSES_MAX,
    ANY_PORT,
    RECORD_BYTES,
    RING_BYTES,
    CaptureRing,
    Control,
    Direction,
    Position,
    ring_of,
    ring_start,
)
from forwarder.counters import Drop
from forwarder.fib.layout import SOCKADDR_IN6_ADDRESS_AT, SOCKADDR_IN_ADDRESS_AT
from forwarder.fib.routes import IPAddress

LEASE_S = 2.0
"""The workers stop copying when the capture has been silent for so long."""
RENEW_S = 0.5
SNAP_BYTES_MIN, SNAP_BYTES_MAX = 64, 1 << 17

_RECORD = struct.Struct("=IIqIBB2x8s32s")  # capture_ring.RECORD
assert _RECORD.size == RECORD_BYTES
_REASONS = {int(drop): drop for drop in Drop}


class CaptureBusy(Exception):
    """Another capture is running on the same forwarder."""


@dataclass(frozen=True)
class Wanted:
    """What to capture: packets to which all of this applies."""

    addresses: tuple[IPv4Network | IPv6Network, ...] = ()
    """Each must hold the packet's source or its destination; at most ADDRESSES_MAX."""
    port: int | None = None
    """TCP or UDP, source or destination; None: whatever it is."""
    reasons: frozenset[Drop] = frozenset(Drop)
    """Drop.NONE: packets that were not dropped."""
    directions: frozenset[Direction] = frozenset(Direction)
    snap_bytes: int = SNAP_BYTES_MAX
    """Most bytes kept of a frame, SNAP_BYTES_MIN to SNAP_BYTES_MAX."""

    def __post_init__(self) -> None:
        if len(self.addresses) > ADDRESSES_MAX:
            raise ValueError(f"{len(self.addresses)} addresses; allowed: up to {ADDRESSES_MAX}")
        if self.port is not None and not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port}; allowed: 0 to 65535")
        if not SNAP_BYTES_MIN <= self.snap_bytes <= SNAP_BYTES_MAX:
            allowed = f"{SNAP_BYTES_MIN} to {SNAP_BYTES_MAX}"
            raise ValueError(f"snap length {self.snap_bytes}; allowed: {allowed}")


@dataclass(frozen=True)
class Captured:
    """One packet, as an inner Ethernet frame."""

    time_ns: int
    """Unix time at which its batch was finished."""
    direction: Direction
    reason: Drop
    vtep: IPAddress | None
    """Outer address of the other node; None: there is none (no route)."""
    vxlan: bytes
    """Inbound: the 8 bytes of the VXLAN header; zeros: outbound, or it was cut short."""
    original_bytes: int
    """Length of the frame; of an inbound datagram without a whole Ethernet header, 0."""
    frame: bytes
    """What was kept of it."""


class Capture:
    """A running capture.  Close it, or use it as a context manager."""

    def __init__(self, fd: int, workers: int, wanted: Wanted) -> None:
        """`fd`: of the forwarder's capture memory; it stays the caller's.  Raises CaptureBusy."""
        # A descriptor of our own: the lock on the given one would be the forwarder's as well.
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise CaptureBusy("another capture is running on this node; end it first") from None
        self._memory = shm.map_writable(self._fd)
        self._bytes = memoryview(self._memory)
        self._rings = [ring_of(self._memory, worker) for worker in range(workers)]
        self._controls = self._rings[0].controls
        self._missed_before = sum(int(r.positions[Position.MISSED]) for r in self._rings)
        for ring in self._rings:  # whatever an earlier capture left
            ring.positions[Position.READ] = ring.positions[Position.WRITTEN]
        self._begun_ns = time.monotonic_ns()
        self._ask_for(wanted)
        shm.order_writes()
        self._renew()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def _ask_for(self, wanted: Wanted) -> None:
        controls = self._controls
        controls[Control.SNAP_BYTES] = wanted.snap_bytes
        controls[Control.REASONS] = sum(1 << reason for reason in wanted.reasons)
        controls[Control.DIRECTIONS] = sum(1 << direction for direction in wanted.directions)
        controls[Control.PORT] = ANY_PORT if wanted.port is None else wanted.port
        controls[Control.ADDRESSES] = len(wanted.addresses)
        for index, network in enumerate(wanted.addresses):
            row = ADDRESSES_AT + index * ADDRESS_ROW
            controls[row : row + ADDRESS_ROW] = [
                network.version,
                *_words(network.network_address.packed),
                *_words(network.netmask.packed),
            ]

    def _beat(self) -> None:
        """Also while a reader of what we write keeps us waiting."""
        while not self._ended.wait(RENEW_S):
            self._renew()

    def _renew(self) -> None:
        lease_ns = time.monotonic_ns() + int(LEASE_S * 1e9)
        self._controls[Control.ARMED_UNTIL_NS] = lease_ns

    def drain(self) -> list[Captured]:
        """All that the workers have copied since the last call, in the order of its time."""
        written = [int(ring.positions[Position.WRITTEN]) for ring in self._rings]
        shm.order_writes()
        to_unix_ns = time.time_ns() - time.monotonic_ns()
        captured: list[Captured] = []
        for worker, ring in enumerate(self._rings):
            captured += self._take(worker, ring, written[worker], to_unix_ns)
        captured.sort(key=lambda packet: packet.time_ns)
        return captured

    def _take(
        self, worker: int, ring: CaptureRing, written: int, to_unix_ns: int
    ) -> Iterator[Captured]:
        start = ring_start(worker)
        position = int(ring.positions[Position.READ])
        while position < written:
            at = position % RING_BYTES
            fields = _RECORD.unpack_from(self._bytes, start + at)
            whole, captured_bytes, time_ns, original, direction, reason, vxlan, vtep = fields
            if whole == 0:
                position += RING_BYTES - at
                continue
            if whole % RECORD_BYTES or whole < RECORD_BYTES + captured_bytes:
                position = written  # begun under a capture that has ended: not for us
                break
            position += whole
            if time_ns < self._begun_ns:
                continue
            first = start + at + RECORD_BYTES
            frame = bytes(self._bytes[first : first + captured_bytes])
            yield Captured(
                time_ns + to_unix_ns,
                Direction(direction),
                _REASONS[reason],
                _address_of(vtep),
                vxlan,
                original,
                frame,
            )
        ring.positions[Position.READ] = position

    @property
    def missed(self) -> int:
        """Packets that were wanted and found no room: they came faster than they were taken."""
        now = sum(int(ring.positions[Position.MISSED]) for ring in self._rings)
        return now - self._missed_before

    def disarm(self) -> None:
        """The workers copy no more; what they have copied can still be drained."""
        self._ended.set()
        self._heart.join()
        self._controls[Control.ARMED_UNTIL_NS] = 0

    def close(self) -> None:
        """Disarms, gives the memory back, and lets another capture begin."""
        self.disarm()
        for worker in range(len(self._rings)):
            self._memory.madvise(mmap.MADV_REMOVE, ring_start(worker), RING_BYTES)
        fcntl.flock(self._fd, fcntl.LOCK_UN)  # closing is not enough: the map holds on to it
        os.close(self._fd)

    def __enter__(self) -> "Capture":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _words(packed: bytes) -> Iterable[int]:
    """An address as four words of 32 bits; an IPv4 address as one, and three zeros."""
    return struct.unpack("!4I", packed.ljust(16, b"\0"))


def _address_of(sockaddr: bytes) -> IPAddress | None:
    family = int.from_bytes(sockaddr[:2], "little")
    if family == socket.AF_INET:
        return ip_address(sockaddr[SOCKADDR_IN_ADDRESS_AT : SOCKADDR_IN_ADDRESS_AT + 4])
    if family == socket.AF_INET6:
        return ip_address(sockaddr[SOCKADDR_IN6_ADDRESS_AT : SOCKADDR_IN6_ADDRESS_AT + 16])
    return None
