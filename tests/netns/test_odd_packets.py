"""Whatever is an IP packet travels, byte for byte, in any mix: nothing but TTLs may change."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
)
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Packet, Raw

from tests.netns.forwarders import Pair, pair_of_forwarders

pytestmark = pytest.mark.netns

ETH_P = {4: 0x0800, 6: 0x86DD}
TIMES = 8
SOME = bytes(range(64))


def odd_packets(version: int, source: str, destination: str) -> list[Packet]:
    """From a header alone to a full one: other protocols, options, extension headers, fragments."""
    ends = {"src": source, "dst": destination}
    sctp = SCTP(sport=1, dport=2) / SCTPChunkData(data=b"data")
    if version == 4:
        return [
            IP(**ends, id=1, proto=253),
            IP(**ends, id=2) / sctp,
            IP(**ends, id=3, proto=47) / Raw(SOME),
            IP(**ends, id=4, options=[IPOption_NOP()] * 4) / UDP(sport=9, dport=9) / Raw(SOME),
            IP(**ends, id=5, options=[IPOption_RR(routers=["0.0.0.0"])]) / TCP(sport=9, dport=9),
            IP(**ends, id=6, flags="MF") / UDP(sport=9, dport=9, len=200) / Raw(SOME),
            IP(**ends, id=6, frag=9) / Raw(SOME),
            IP(**ends, id=7, flags="DF", proto=254) / Raw(bytes(1430)),
        ]
    padding = PadN(optdata=bytes(4))
    return [
        IPv6(**ends, nh=59),
        IPv6(**ends) / sctp,
        IPv6(**ends, nh=47) / Raw(SOME),
        IPv6(**ends) / IPv6ExtHdrHopByHop(options=[padding]) / UDP(sport=9, dport=9) / Raw(SOME),
        IPv6(**ends) / IPv6ExtHdrDestOpt(options=[padding]) / TCP(sport=9, dport=9) / Raw(SOME),
        IPv6(**ends) / IPv6ExtHdrFragment(m=1, id=6) / UDP(sport=9, dport=9, len=200) / Raw(SOME),
        IPv6(**ends) / IPv6ExtHdrFragment(offset=9, id=6, nh=17) / Raw(SOME),
        IPv6(**ends, nh=254) / Raw(bytes(1410)),
    ]


def unchanging(packet: bytes) -> bytes:
    """Without TTL and header checksum, and without the route that it was asked to record."""
    data = bytearray(packet)
    if data[0] >> 4 == 6:
        data[7] = 0
        return bytes(data)
    header = (data[0] & 0xF) * 4
    data[8] = 0
    data[10:12] = bytes(2)
    if header > 20 and data[20] == 7:
        data[22:header] = bytes(header - 22)
    return bytes(data)


def test_any_mix_of_ip_packets_arrives_as_it_was_sent(tmp_path: Path) -> None:
    with pair_of_forwarders(tmp_path) as pair:
        for near, far in ((0, 1), (1, 0)):
            for version in (4, 6):
                assert missing_of(pair, near, far, version) == Counter(), pair.ends[near].drops()


def missing_of(pair: Pair, near: int, far: int, version: int) -> Counter[bytes]:
    """What does not arrive of many packets of all kinds."""
    source, destination = (str(pair.address_of(number, version)) for number in (near, far))
    packets = [bytes(p) for p in odd_packets(version, source, destination)] * TIMES
    Random(version).shuffle(packets)
    with pair.ends[far].pod.entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        tap.bind(("eth0", ETH_P[version]))
    with pair.ends[near].pod.entered():
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        sender = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with tap, sender:
        tap.settimeout(5)
        for packet in packets:
            sender.sendto(packet, (destination, 0))
        return read_until(tap, Counter(unchanging(packet) for packet in packets))


def read_until(tap: socket.socket, expected: Counter[bytes]) -> Counter[bytes]:
    """What is still missing when nothing more arrives."""
    missing = expected.copy()
    with contextlib.suppress(TimeoutError):
        while missing:
            arrived, address = tap.recvfrom(65535)
            if address[2] != socket.PACKET_OUTGOING:
                missing -= Counter([unchanging(arrived)])
    return missing
