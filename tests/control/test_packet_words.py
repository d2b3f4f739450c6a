"""Captured packets in words."""

import time
from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from control import packet_words
from forwarder.capture_reader import Captured
from forwarder.capture_ring import Direction
from forwarder.counters import Drop

VTEP = ip_address("192.0.2.7")
V4, V6 = {"src": "10.5.1.2", "dst": "10.5.2.3"}, {"src": "fd05:1::2", "dst": "fd05:2::3"}


def captured(frame: bytes, reason: Drop = Drop.NONE) -> Captured:
    return Captured(0, Direction.OUT, reason, VTEP, bytes(8), len(frame), frame)


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (IP(**V4) / TCP(sport=5000, dport=80), "10.5.1.2:5000 > 10.5.2.3:80 TCP, 40 bytes"),
        (IPv6(**V6) / UDP(sport=53, dport=9), "[fd05:1::2]:53 > [fd05:2::3]:9 UDP, 48 bytes"),
        (IP(**V4) / ICMP(), "10.5.1.2 > 10.5.2.3 ICMP, 28 bytes"),
        (IP(**V4, frag=9) / UDP() / Raw(b"x" * 8), "10.5.1.2 > 10.5.2.3 UDP, 36 bytes"),
        (IP(**V4, proto=89), "10.5.1.2 > 10.5.2.3 protocol 89, 20 bytes"),
        (Raw(b"?"), "no IP packet, 1 bytes"),
        (Raw(b""), "no IP packet, 0 bytes"),
    ],
)
def test_line_names_both_ends_and_the_length(packet: Packet, words: str) -> None:
    line = packet_words.line(captured(bytes(Ether() / packet)))
    assert line.endswith(f" out {words}, to {VTEP}")


def test_line_begins_with_the_local_time() -> None:
    packet = replace(captured(b""), time_ns=86_399_000_012_000)
    clock = time.strftime("%H:%M:%S", time.localtime(86_399))
    assert packet_words.line(packet).startswith(f"{clock}.000012 out ")


def test_drop_is_told_with_its_sentence_and_the_node_it_came_from() -> None:
    packet = replace(captured(b"", Drop.SPOOFED_SOURCE), direction=Direction.IN)
    assert packet_words.fate(packet) == (
        f"from {VTEP}, dropped spoofed_source: {Drop.SPOOFED_SOURCE.sentence}"
    )


def test_header_is_told_where_it_is_what_was_wrong() -> None:
    packet = replace(captured(b"", Drop.WRONG_VNI), vxlan=bytes.fromhex("0800000000000900"))
    assert packet_words.fate(packet).endswith("VXLAN header 08 00 00 00 00 00 09 00")


def test_packet_without_a_route_goes_to_nobody() -> None:
    packet = replace(captured(b"", Drop.NO_ROUTE), vtep=None)
    assert packet_words.fate(packet) == f"dropped no_route: {Drop.NO_ROUTE.sentence}"
