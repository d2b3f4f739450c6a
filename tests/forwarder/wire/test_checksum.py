"""Checksum kernels against word-by-word sums, over all alignments and lengths."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from forwarder.wire.checksum import (
    finish_partial,
    ipv4_checksum_is_right,
    ones_sum,
    pseudo_sum,
    set_ipv4_checksum,
    update16,
)
from tests.forwarder.fibs import to_array
from tests.forwarder.packets import Flow, with_partial_checksum
from tests.reference import checksum as reference


def test_sum_is_right_at_every_alignment_and_length() -> None:
    random = np.random.default_rng(2)
    data = random.integers(0, 256, 400, np.uint8)
    for start in range(16):
        for length in range(len(data) - start):
            expected = reference.ones_sum(data[start : start + length].tobytes())
            assert ones_sum(data, start, length) == expected


def test_sum_carries_as_far_as_it_must() -> None:
    for byte in (0x00, 0xFF, 0x80):
        data = np.full(65600, byte, np.uint8)
        for length in (1, 2, 3, 65535, 65600):
            expected = reference.ones_sum(bytes([byte]) * length)
            assert ones_sum(data, 0, length) == expected


@given(st.binary(min_size=4, max_size=200), st.integers(0, 3))
def test_sum_of_anything(data: bytes, start: int) -> None:
    assert ones_sum(to_array(data), start, len(data) - start) == reference.ones_sum(data[start:])


@given(st.sampled_from([4, 6]), st.integers(0, 255), st.integers(0, 65535))
def test_pseudo_header_sum(version: int, protocol: int, length: int) -> None:
    packet = Flow.between(version, "udp", 1, {4: "203.0.113.", 6: "ffff::"}).packet(b"")
    expected = reference.ones_sum(reference.pseudo_header(packet, protocol, length))
    assert pseudo_sum(to_array(b"x" + packet), 1, protocol, length) == expected


def test_ipv4_header_checksum_is_scapys() -> None:
    for options in (b"", b"\x94\4\0\0"):
        packet = bytes(IP(src="10.1.2.3", dst="10.3.2.1", id=77, options=options))
        data = to_array(b"abc" + packet[:10] + b"\x12\x34" + packet[12:])
        assert not ipv4_checksum_is_right(data, 3, len(packet))
        set_ipv4_checksum(data, 3, len(packet))
        assert data[3:].tobytes() == packet
        assert ipv4_checksum_is_right(data, 3, len(packet))


@given(st.binary(max_size=100), st.sampled_from(["tcp", "udp"]), st.sampled_from([4, 6]))
def test_finished_checksum_is_scapys(payload: bytes, protocol: str, version: int) -> None:
    packet = Flow.between(version, protocol, 1, {4: "10.0.0.", 6: "fd00::"}).packet(payload)
    transport = 20 if version == 4 else 40
    data = to_array(with_partial_checksum(packet))
    finish_partial(data, transport, len(packet), transport + (16 if protocol == "tcp" else 6))
    assert data.tobytes() == packet


def test_checksum_of_zero_is_sent_as_all_ones() -> None:
    # RFC 768: zero would say that there is none.  The payload makes the sum come out so.
    for header in (IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd00::1", dst="fd00::2")):
        plain = bytes(header / UDP(sport=1, dport=2) / Raw(b"\0\0"))
        transport = len(plain) - 10
        missing = plain[transport + 6 : transport + 8]
        packet = bytes(header / UDP(sport=1, dport=2) / Raw(missing))
        data = to_array(with_partial_checksum(packet))
        finish_partial(data, transport, len(packet), transport + 6)
        assert data[transport + 6 : transport + 8].tobytes() == b"\xff\xff"


@given(st.binary(min_size=20, max_size=20), st.integers(0, 0xFFFF))
def test_incremental_update_equals_a_new_sum(header: bytes, new: int) -> None:
    with_sum = header[:10] + b"\0\0" + header[12:]
    with_sum = header[:10] + reference.checksum(with_sum).to_bytes(2, "big") + header[12:]
    data = to_array(with_sum)
    old = int.from_bytes(with_sum[:2], "big")
    data[0], data[1] = new >> 8, new & 0xFF
    update16(data, 10, old, new)
    assert reference.ones_sum(data.tobytes()) in (0, 0xFFFF)
