"""What fits the way to each peer: the kernel's path MTUs, told to the workers.

The underlay's sockets leave DF clear, as flannel's kernel device does, so what is too large for
the way is cut by the kernel or by a router: it arrives, but slowly, and not where a firewall drops
fragments.  A pod that asks to be told (DF, and all of IPv6) is told instead, once the kernel knows
the way: from the MTU of a route, or from ICMP (RFC 1191, RFC 8201) that any packet of this host
met there.

The kernel announces no such change.  So it is asked now and then, for the peers that packets are
sent to: connect(2) sends nothing, and IP_MTU and IPV6_MTU (ip(7), ipv6(7)) say what it found.
"""

import contextlib
import mmap
import os
import socket
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from forwarder import shm
from forwarder.arrays import Int, Longs, Words
from forwarder.counters import PEER_OUT_PACKETS
from forwarder.fib.layout import (
    SOCKADDR_IN6_ADDRESS_AT,
    SOCKADDR_IN_ADDRESS_AT,
    FibMemory,
    Kind,
)
from forwarder.fib.routes import IPAddress
from forwarder.jit import step
from forwarder.tunnel import Tunnel
from forwarder.wire.ip import IPV4_BYTES, IPV6_BYTES, UDP_BYTES
from forwarder.wire.vxlan import ENCAP_BYTES

REFRESH_S = 1.0
"""How often the kernel is asked."""
PEERS_PER_REFRESH = 256
"""Some 15 µs each; where more are busy, they take turns."""

IP_MTU, IPV6_MTU = 14, 24  # include/uapi/linux/in.h, in6.h
IPV4_MTU_MIN, IPV6_MTU_MIN = 68, 1280
"""RFC 791, RFC 8200 §5: no sender may be asked for less, smaller ways get fragments."""


@step
def mtu_towards(tunnel: Tunnel, adjacency: Int, version: Int) -> Int:
    """The largest inner packet of an IP version to send to a peer unfragmented, in bytes."""
    limit = np.int64(tunnel.path_mtu[adjacency])
    if limit == 0:
        return np.int64(tunnel.mtu_bytes)
    least = IPV4_MTU_MIN if version == 4 else IPV6_MTU_MIN
    return min(max(limit, np.int64(least)), np.int64(tunnel.mtu_bytes))


class PathMtus:
    """The limits of one FIB's adjacency rows: written here, read by the workers.

    A row that is reused has its predecessor's limit until the next refresh.
    """

    def __init__(self, fib: FibMemory, per_peer: Longs) -> None:
        """`per_peer`: the counters of the rows, as in forwarder.counters."""
        self._fib = fib
        self._per_peer = per_peer
        rows = fib.capacity.adjacencies
        fd = shm.create("loden-path-mtu", 4 * rows)
        writable = shm.map_writable(fd)
        writable.madvise(mmap.MADV_DONTFORK)  # the workers only have the other map
        self._limits: Words = np.frombuffer(writable, np.uint32)
        self.column: Words = np.frombuffer(shm.map_readonly(fd), np.uint32)
        """uint32[adjacencies]: the largest inner packet, in bytes; 0: any that the device takes."""
        os.close(fd)
        self._sent_before: Longs = np.zeros(rows, np.int64)
        self._next_row = 0

    def refresh(self, addresses: Iterable[IPAddress], mtu_bytes: int) -> dict[str, int]:
        """Asks for the peers that were sent to since the last time, and those with a limit.

        `addresses` are our own on the underlay, `mtu_bytes` the overlay device's MTU.  Returns
        the limits that are new: outer address -> bytes, 0 for one that has gone.
        """
        changed = {}
        due = self._due_rows()
        with contextlib.ExitStack() as opened:
            askers = {a.version: opened.enter_context(_open_asker(a)) for a in addresses if due}
            for row in due:
                peer = self._peer_of(row)
                limit = 0
                if peer is not None and peer.version in askers:
                    limit = _ask(askers[peer.version], peer, mtu_bytes)
                if limit != self._limits[row]:
                    self._limits[row] = limit
                    if peer is not None:
                        changed[peer.address] = limit
        return changed

    def _due_rows(self) -> list[int]:
        used = int(self._fib.header["adjacencies_used"])
        sent = self._per_peer[:, :used, PEER_OUT_PACKETS].sum(axis=0)
        due = np.flatnonzero((sent != self._sent_before[:used]) | (self._limits[:used] != 0))
        in_turn = np.roll(due, -int(np.searchsorted(due, self._next_row)))[:PEERS_PER_REFRESH]
        if len(in_turn):
            self._next_row = int(in_turn[-1]) + 1
        self._sent_before[in_turn] = sent[in_turn]
        return [int(row) for row in in_turn]

    def limits(self, at_most: int | None = None) -> dict[str, int]:
        """Peers with a limit: outer address -> bytes of the largest inner packet."""
        rows = np.flatnonzero(self._limits)[:at_most].tolist()
        peers = ((self._peer_of(row), int(self._limits[row])) for row in rows)
        return {peer.address: limit for peer, limit in peers if peer is not None}

    def _peer_of(self, row: int) -> "_Peer | None":
        entry = self._fib.adjacencies[row]
        if entry["kind"] != Kind.REMOTE:
            return None
        sockaddr = entry["sockaddr"].tobytes()
        port = int.from_bytes(sockaddr[2:4], "big")
        if sockaddr[0] == socket.AF_INET:
            packed = sockaddr[SOCKADDR_IN_ADDRESS_AT : SOCKADDR_IN_ADDRESS_AT + 4]
            return _Peer(4, socket.inet_ntop(socket.AF_INET, packed), port)
        packed = sockaddr[SOCKADDR_IN6_ADDRESS_AT : SOCKADDR_IN6_ADDRESS_AT + 16]
        return _Peer(6, socket.inet_ntop(socket.AF_INET6, packed), port)


class _Peer(NamedTuple):
    version: int
    address: str
    port: int


def _open_asker(own: IPAddress) -> socket.socket:
    asker = socket.socket(
        socket.AF_INET if own.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM
    )
    with contextlib.suppress(OSError):  # the address has gone: any other does as well
        asker.bind((str(own), 0))
    return asker


def _ask(asker: socket.socket, peer: _Peer, mtu_bytes: int) -> int:
    """The limit of a peer; 0 where everything fits, or where there is no way at all."""
    ipv4 = peer.version == 4
    try:
        asker.connect((peer.address, peer.port))
        if ipv4:
            path_mtu = asker.getsockopt(socket.IPPROTO_IP, IP_MTU)
        else:
            path_mtu = asker.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)
    except OSError:
        return 0
    limit = path_mtu - (IPV4_BYTES if ipv4 else IPV6_BYTES) - UDP_BYTES - ENCAP_BYTES
    return max(limit, 1) if limit < mtu_bytes else 0
