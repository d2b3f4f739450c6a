"""Packets to begin with, built once by scapy, and what is done to them."""

from itertools import product

import numpy as np
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.packet import Raw

from tests.forwarder.packets import NET_A, NET_B, NET_C, Flow, encapsulated, with_partial_checksum
from tests.forwarder.stages import FromTun
from tests.forwarder.test_outbound import superpacket, unfinished
from tests.reference.segmentation import split

Random = np.random.Generator

INTERESTING = (0, 1, 2, 5, 6, 8, 17, 20, 40, 44, 45, 0x45, 0x46, 0x4F, 0x60, 127, 128, 254, 255)


def plain_packets() -> list[bytes]:
    """One of each kind, from a pod of A."""
    packets = []
    for version, protocol, net in product((4, 6), ("tcp", "udp"), (NET_B, NET_C)):
        flow = Flow.between(version, protocol, 1, net)
        for size in (0, 1, 63, 500, 1390):
            packets.append(flow.packet(bytes(i & 0xFF for i in range(size))))
        packets.append(with_partial_checksum(flow.packet(b"unfinished")))
    ipv4 = Flow(protocol="udp")
    for fields in ({"options": b"\x94\4\0\0"}, {"flags": "MF"}, {"frag": 9}, {"proto": 132}):
        packets.append(ipv4.packet(b"payload" * 9, dict(fields)))
    ipv6 = Flow(6, "tcp", NET_A[6] + "2", NET_B[6] + "2")
    for extension in (IPv6ExtHdrDestOpt(), IPv6ExtHdrFragment(m=1)):
        packets.append(bytes(ipv6.ip() / extension / ipv6.transport() / Raw(b"payload" * 9)))
    return packets


def streams() -> list[list[bytes]]:
    """Segments of superpackets, equally long but for the last: what UDP_GRO brings together."""
    found = []
    for version, protocol, number in product((4, 6), ("tcp", "udp"), range(3)):
        flow = Flow.between(version, protocol, number, NET_B)
        packet = flow.packet(bytes(i * 5 & 0xFF for i in range(9000)))
        found.append(split(packet, (1370, 700, 90)[number]))
    return found


def giants() -> list[bytes]:
    """Inner superpackets of a kernel peer."""
    flows = [Flow.between(v, p, 9, NET_B) for v, p in product((4, 6), ("tcp", "udp"))]
    return [with_partial_checksum(flow.packet(bytes(20000))) for flow in flows]


def from_tun() -> list[FromTun]:
    """What a pod's kernel hands over."""
    found = [FromTun(packet) for packet in plain_packets()]
    for version, protocol, net in product((4, 6), ("tcp", "udp"), (NET_B, NET_C)):
        flow = Flow.between(version, protocol, 3, net)
        found.append(unfinished(flow.packet(bytes(700))))
        for size in (90, 1370):
            found.append(superpacket(flow.packet(bytes(20000)), size))
    return found


def frames_of(packets: list[bytes]) -> list[bytes]:
    return [encapsulated(packet) for packet in packets]


def damage(random: Random, data: bytearray, headers: int) -> None:
    """Changes up to three bytes, mostly among the first `headers`."""
    for _ in range(int(random.integers(0, 4))):
        if not data:
            return
        limit = min(headers, len(data)) if random.random() < 0.9 else len(data)
        at = int(random.integers(limit))
        kind = random.integers(3)
        if kind == 0:
            data[at] = int(random.integers(256))
        elif kind == 1:
            data[at] ^= 1 << int(random.integers(8))
        else:
            data[at] = INTERESTING[int(random.integers(len(INTERESTING)))]


def shorten(random: Random, data: bytearray) -> None:
    """Cuts the end off, sometimes a little, sometimes nearly all."""
    keep = random.integers(len(data) + 1) if random.random() < 0.5 else len(data) - 1
    del data[max(int(keep), 0) :]
