"""Answers to pods, as scapy reads them, and the packets that must never be answered."""

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.packet import Packet, Raw

from forwarder.batch import ANSWER_BYTES
from forwarder.counters import Drop
from forwarder.icmp import (
    BURST,
    may_be_answered,
    take_token,
    write_ipv4,
    write_ipv6,
)
from forwarder.wire.virtio_net import VNET_BYTES
from tests.forwarder.fibs import to_array

POD, FAR = "10.7.1.2", "10.9.9.9"
POD6, FAR6 = "fd07:1::2", "fd09::9"


def answer_to(packet: bytes, reason: Drop) -> bytes:
    out = np.full(ANSWER_BYTES, 0xEE, np.uint8)
    write = write_ipv4 if packet[0] >> 4 == 4 else write_ipv6
    total = write(out, to_array(b"abc" + packet), 3, len(packet), reason, 1450)
    assert not out[:VNET_BYTES].any()
    return out[VNET_BYTES : VNET_BYTES + total].tobytes()


@pytest.mark.parametrize("payload_bytes", [0, 1, 2000])
@pytest.mark.parametrize(
    ("reason", "code", "mtu"),
    [(Drop.NO_ROUTE, 0, 0), (Drop.TOO_BIG, 4, 1450), (Drop.BLACKHOLE, 13, 0)],
)
def test_ipv4_answer_is_what_scapy_builds(
    reason: Drop, code: int, mtu: int, payload_bytes: int
) -> None:
    packet = bytes(IP(src=POD, dst=FAR) / UDP() / Raw(bytes(payload_bytes)))
    quoted = packet[: 576 - 28]
    error = ICMP(type=3, code=code, nexthopmtu=mtu, unused=0)
    expected = IP(src=FAR, dst=POD, id=0, ttl=64) / error / Raw(quoted)
    assert answer_to(packet, reason) == bytes(expected)


@pytest.mark.parametrize("payload_bytes", [0, 1, 2000])
@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (Drop.NO_ROUTE, ICMPv6DestUnreach(code=0)),
        (Drop.BLACKHOLE, ICMPv6DestUnreach(code=1)),
        (Drop.TOO_BIG, ICMPv6PacketTooBig(mtu=1450)),
    ],
)
def test_ipv6_answer_is_what_scapy_builds(reason: Drop, error: Packet, payload_bytes: int) -> None:
    packet = bytes(IPv6(src=POD6, dst=FAR6) / UDP() / Raw(bytes(payload_bytes)))
    quoted = packet[: 1280 - 48]
    expected = IPv6(src=FAR6, dst=POD6, hlim=64) / error / Raw(quoted)
    assert answer_to(packet, reason) == bytes(expected)


UDP_PACKET = UDP() / Raw(b"payload")


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (IP(src=POD, dst=FAR) / UDP_PACKET, True),
        (IP(src=POD, dst=FAR, flags="MF") / UDP_PACKET, True),
        (IP(src=POD, dst=FAR, frag=1) / UDP_PACKET, False),
        (IP(src=POD, dst=FAR) / ICMP(type=8), True),
        (IP(src=POD, dst=FAR) / ICMP(type=3), False),
        (IP(src=POD, dst=FAR) / ICMP(type=11), False),
        (IP(src=POD, dst="224.0.0.1") / UDP_PACKET, False),
        (IP(src=POD, dst="255.255.255.255") / UDP_PACKET, False),
        (IP(src="0.0.0.0", dst=FAR) / UDP_PACKET, False),
        (IP(src="127.0.0.1", dst=FAR) / UDP_PACKET, False),
        (IPv6(src=POD6, dst=FAR6) / UDP_PACKET, True),
        (IPv6(src=POD6, dst=FAR6) / ICMPv6EchoRequest(), True),
        (IPv6(src=POD6, dst=FAR6) / ICMPv6DestUnreach(), False),
        (IPv6(src=POD6, dst=FAR6) / ICMPv6PacketTooBig(), False),
        (IPv6(src=POD6, dst="ff02::1") / UDP_PACKET, False),
        (IPv6(src="::", dst=FAR6) / UDP_PACKET, False),
        (IPv6(src="::1", dst=FAR6) / UDP_PACKET, False),
        (IPv6(src=POD6, dst=FAR6) / IPv6ExtHdrFragment(offset=0, m=1) / UDP_PACKET, True),
        (IPv6(src=POD6, dst=FAR6) / IPv6ExtHdrFragment(offset=5) / UDP_PACKET, False),
        (IPv6(src=POD6, dst=FAR6) / IPv6ExtHdrFragment(m=1) / ICMPv6PacketTooBig(), False),
        (IPv6(src=POD6, dst=FAR6) / IPv6ExtHdrFragment(m=1) / ICMPv6EchoRequest(), True),
    ],
)
def test_only_what_rfcs_allow_is_answered(packet: Packet, expected: bool) -> None:
    data = bytes(packet)
    assert may_be_answered(to_array(b"x" + data), 1, len(data)) == expected


def test_answers_are_rate_limited() -> None:
    limiter = np.zeros(4, np.int64)
    assert sum(take_token(limiter) for _ in range(10 * BURST)) in range(BURST, BURST + 20)
