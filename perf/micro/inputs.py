"""What the kernels are given, the same for every contender: packets, routes and addresses.

Packets are IPv4 with right checksums, between pods of two nodes; nothing is random but by a seed.
"""

from __future__ import annotations

import struct
from functools import cached_property
from ipaddress import IPv4Address

import numpy as np
import numpy.typing as npt

from forwarder.arrays import Words
from forwarder.batch import PACKETS
from forwarder.fib.layout import GROUP_ENTRIES, IS_GROUP, TBL24_ENTRIES, Capacity
from forwarder.wire.ip import PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK

OWN_MAC = bytes.fromhex("020000000001")
VNI, PORT = 1, 8472
NODES = 16
"""So many nodes' pods are sent to."""
FIRST_LEASE = int(IPv4Address("10.0.0.0"))
LEASES = 10_000
FIRST_ROW = 1
"""The adjacency of the first lease, or node; the others follow."""
LEASED_LOOKUPS = 1 << 16
RANDOM_LOOKUPS = 1 << 20
"""So many that what they touch of the table is more than caches hold."""
ADJACENCIES = Capacity().adjacencies
RANDOM_GROUPS = 4096
"""So many /24s of the random table have routes longer than that."""
SEGMENT_BYTES = 1398
"""TCP payload of a full packet: overlay MTU 1450, less 20 for IP, 20 for TCP, 12 for timestamps."""
TCP_HEADER_BYTES = 52
SEGMENTS = 45
FLOWS = 8
TIMESTAMPS = bytes.fromhex("0101080a0000000100000002")


class Inputs:
    """Each is made when first asked for, and then kept."""

    @cached_property
    def packets(self) -> list[bytes]:
        """A batch of small ones, as many as a worker reads at once: TCP and UDP in turn."""
        make = (udp_packet, tcp_packet)
        return [make[i % 2](flow=i, payload=pattern(64)) for i in range(PACKETS)]

    @cached_property
    def macs(self) -> list[bytes]:
        """By node."""
        return [b"\2\1" + number.to_bytes(4, "big") for number in range(NODES)]

    @cached_property
    def superpacket(self) -> bytes:
        """45 full packets of TCP in one, as a TUN with segmentation offload hands it over."""
        return tcp_packet(flow=0, payload=pattern(SEGMENTS * SEGMENT_BYTES))

    @cached_property
    def frames(self) -> list[tuple[int, bytes]]:
        """Full TCP packets as they come from the underlay, 45 of each flow: (flow, packet)."""
        payload = pattern(SEGMENT_BYTES)
        return [
            (flow, tcp_packet(flow, payload, identification=k, sequence=k * SEGMENT_BYTES))
            for flow in range(FLOWS)
            for k in range(SEGMENTS)
        ]

    @cached_property
    def leased(self) -> Words:
        """Random addresses within the leases: LEASES neighbouring /24s from FIRST_LEASE on."""
        generator = np.random.default_rng(1)
        return generator.integers(
            FIRST_LEASE, FIRST_LEASE + (LEASES << 8), LEASED_LOOKUPS, np.uint32
        )

    @cached_property
    def anywhere(self) -> Words:
        """Random addresses."""
        return np.random.default_rng(2).integers(0, 1 << 32, RANDOM_LOOKUPS, np.uint32)

    @cached_property
    def random_table(self) -> tuple[Words, Words]:
        """(tbl24, groups): each /24 leads somewhere at random, some have a route per address."""
        generator = np.random.default_rng(3)
        tbl24 = generator.integers(1, ADJACENCIES, TBL24_ENTRIES, np.uint32)
        groups = generator.integers(1, ADJACENCIES, RANDOM_GROUPS * GROUP_ENTRIES, np.uint32)
        slots = generator.choice(TBL24_ENTRIES, RANDOM_GROUPS, replace=False)
        tbl24[slots] = np.arange(RANDOM_GROUPS, dtype=np.uint32) | np.uint32(IS_GROUP)
        return tbl24, groups


def node_of(packet_number: int) -> int:
    """The node that a packet of the batch goes to."""
    return packet_number % NODES


def pattern(count: int) -> bytes:
    """Bytes that are not all alike."""
    return bytes(i * 7 + (i >> 8) & 0xFF for i in range(count))


def tcp_packet(flow: int, payload: bytes, identification: int = 0, sequence: int = 0) -> bytes:
    """An acknowledgment with data and timestamps, from a port that tells its flow."""
    offset_flags = (32 // 4) << 12 | TCP_ACK
    fields = (40000 + flow, 80, sequence, 77, offset_flags, 512, 0, 0)
    segment = struct.pack("!HHIIHHHH", *fields) + TIMESTAMPS + payload
    return ipv4_packet(flow, PROTOCOL_TCP, segment, 16, identification)


def udp_packet(flow: int, payload: bytes) -> bytes:
    datagram = struct.pack("!HHHH", 40000 + flow, 53, 8 + len(payload), 0) + payload
    return ipv4_packet(flow, PROTOCOL_UDP, datagram, 6, 0)


def ipv4_packet(
    flow: int, protocol: int, transport: bytes, checksum_at: int, identification: int
) -> bytes:
    """With DF, from 10.7.1.2 to a pod of the flow's node; both checksums are filled in."""
    addresses = bytes((10, 7, 1, 2, 10, 7, 2 + node_of(flow), 3))
    fields = (0x45, 0, 20 + len(transport), identification, 0x4000, 64, protocol, 0)
    header = with_checksum(struct.pack("!BBHHHBBH", *fields) + addresses, 10)
    pseudo = addresses + struct.pack("!HH", protocol, len(transport))
    return header + with_checksum(transport, checksum_at, pseudo)


def with_checksum(data: bytes, at: int, before: bytes = b"") -> bytes:
    """`data` with its checksum (RFC 1071), over `before` too, in the empty field at `at`."""
    summed = before + data + b"\0" * (len(data) % 2)
    words: npt.NDArray[np.uint16] = np.frombuffer(summed, ">u2")
    total = int(words.sum(dtype=np.int64)) % 0xFFFF
    return data[:at] + (0xFFFF - total).to_bytes(2, "big") + data[at + 2 :]
