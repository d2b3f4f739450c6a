"""The kernels are given sound packets: scapy finds nothing to correct in them."""

from __future__ import annotations

from scapy.layers.inet import IP

from forwarder.batch import OUT_BYTES, PACKETS
from perf.micro.inputs import FLOWS, SEGMENT_BYTES, SEGMENTS, Inputs, with_checksum
from tests.reference.checksum import ones_sum
from tests.reference.packet import checksums_are_right, header_bytes


def test_packets_have_right_lengths_and_checksums() -> None:
    inputs = Inputs()
    for packet in (*inputs.packets, inputs.superpacket, *(p for _, p in inputs.frames[:50])):
        again = IP(packet)
        del again.len, again.chksum, again.payload.chksum
        assert bytes(again) == packet
        assert checksums_are_right(packet)


def test_packets_are_what_a_worker_meets() -> None:
    inputs = Inputs()
    assert len(inputs.packets) == PACKETS
    assert len(set(inputs.packets)) == PACKETS
    assert len(inputs.superpacket) - header_bytes(inputs.superpacket) == SEGMENTS * SEGMENT_BYTES
    assert len(inputs.superpacket) < min(65536, OUT_BYTES)
    assert {len(packet) for _, packet in inputs.frames} == {1450}
    assert len({flow for flow, _ in inputs.frames}) == FLOWS


def test_checksum_covers_odd_lengths_and_what_stands_before() -> None:
    done = with_checksum(b"\x12\x34\0\0\x56", 2, b"\xff\xff\x01\x02")
    assert (done[:2], done[4:]) == (b"\x12\x34", b"\x56")
    assert ones_sum(b"\xff\xff\x01\x02" + done) == 0xFFFF
