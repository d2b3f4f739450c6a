"""Splitting superpackets: every segment's headers, against the oracle and scapy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Packet, Raw

from forwarder.wire.split import segment_count, split
from tests.forwarder.fibs import to_array
from tests.reference import segmentation
from tests.reference.packet import find_transport, header_bytes

HEADERS = [
    IP(src="10.0.0.1", dst="10.255.0.9", id=65534, tos=0x2A),
    IP(src="10.0.0.1", dst="10.255.0.9", options=[IPOption_Router_Alert()]),
    IPv6(src="fd00::1", dst="fd00:ffff::9", fl=0xABCDE),
    IPv6(src="fd00::1", dst="fd00:ffff::9") / IPv6ExtHdrDestOpt(),
]


def run_split(packet: bytes, size: int, at: int = 0) -> list[bytes]:
    """The segments by the kernels, with the packet `at` bytes into its buffer."""
    data = to_array(bytes(at) + packet)
    kind, transport, _ = find_transport(packet)
    count, header = segment_count(data, at, len(packet), kind, transport, size)
    rows = np.full((count, header + 4), 0xEE, np.uint8)
    split(data, at, len(packet), kind, transport, size, count, rows)
    assert data.tobytes() == bytes(at) + packet
    assert (rows[:, header:] == 0xEE).all()
    payload = packet[header:]
    return [rows[k, :header].tobytes() + payload[k * size : (k + 1) * size] for k in range(count)]


@settings(max_examples=300)
@given(st.data())
def test_segments_are_the_oracles(data: st.DataObject) -> None:
    header = data.draw(st.sampled_from(HEADERS))
    flags = data.draw(st.integers(0, 255))
    options = data.draw(st.sampled_from([[], [("Timestamp", (1, 2)), ("NOP", None)]]))
    sequence = data.draw(st.sampled_from([0, 0xFFFFFFFF, 0xFFFF0000, 0x12345678]))
    tcp = TCP(sport=1, dport=2, seq=sequence, flags=flags, options=options)
    body = data.draw(st.sampled_from([tcp, UDP(sport=1, dport=2)]))
    payload = data.draw(st.binary(min_size=1, max_size=300))
    size = data.draw(st.integers(1, 200))
    packet = bytes(header / body / Raw(payload))
    at = data.draw(st.integers(0, 3))
    assert run_split(packet, size, at) == segmentation.split(packet, size)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("body", [TCP(sport=1, dport=2, flags="FPA"), UDP(sport=1, dport=2)])
def test_scapy_finds_lengths_and_checksums_of_64_kib_right(header: Packet, body: Packet) -> None:
    overhead = len(header) + len(body)
    payload = np.random.default_rng(3).bytes(65535 - overhead)
    segments = run_split(bytes(header / body / Raw(payload)), 1401)
    received = b""
    for segment in segments:
        built = type(header)(segment)
        received += built[Raw].load
        for layer in (built, built[type(body)]):
            for field in ("len", "plen", "chksum"):
                layer.fields.pop(field, None)
        assert bytes(built) == segment
    assert received == payload


@pytest.mark.parametrize("header", [HEADERS[0], HEADERS[2]])
def test_udp_checksum_of_zero_becomes_all_ones(header: Packet) -> None:
    packet = bytes(header / UDP(sport=1, dport=2) / Raw(bytes(2)))
    checksum_at = len(packet) - 4
    # A payload that adds just what was missing to a sum of zero.
    packet = packet[:-2] + packet[checksum_at : checksum_at + 2]
    [segment] = run_split(packet, 2)
    assert segment[checksum_at : checksum_at + 2] == b"\xff\xff"
    assert segment == segmentation.split(packet, 2)[0]


def test_what_is_no_superpacket_has_no_segments() -> None:
    packet = bytes(IP() / TCP() / Raw(b"payload"))
    data = to_array(packet)
    kind, transport, _ = find_transport(packet)
    assert segment_count(data, 0, len(packet), kind, transport, 3) == (3, header_bytes(packet))
    assert segment_count(data, 0, len(packet), kind, transport, 0) == (0, 0)
    assert segment_count(data, 0, 40, kind, transport, 3) == (0, 0)
    assert segment_count(data, 0, len(packet), 0, transport, 3) == (0, 0)
