"""Reading IP headers: whatever the bytes are, the kernels and the oracle agree."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.packet import Packet, Raw

from forwarder.wire import ip
from forwarder.wire.ip import find_transport, flow_hash, ip_length, load16, load32, store16, store32
from tests.forwarder.fibs import to_array
from tests.forwarder.packets import Flow, odd_packets, payloads
from tests.reference import packet as reference

HEADROOM = b"\xa5" * 3


@st.composite
def sane_or_not(draw: st.DrawFn) -> bytes:
    """A packet, perhaps with bytes of its headers changed, perhaps cut short."""
    flow = Flow.between(draw(st.sampled_from([4, 6])), draw(st.sampled_from(["tcp", "udp"])), 1, TO)
    data = bytearray(draw(odd_packets() | payloads.map(flow.packet)))
    for at, value in draw(st.lists(st.tuples(st.integers(0, 79), st.integers(0, 255)), max_size=3)):
        if at < len(data):
            data[at] = value
    return bytes(data[: draw(st.none() | st.integers(0, len(data)))])


TO = {4: "10.0.0.", 6: "fd00::"}


@settings(max_examples=400)
@given(sane_or_not() | st.binary(max_size=120))
@example(b"")
@example(b"\x45" + bytes(19))
@example(b"\x60" + bytes(39))
def test_length_transport_and_kind_are_the_oracles(data: bytes) -> None:
    array = to_array(HEADROOM + data + b"\x5a" * 7)
    length = ip_length(array, len(HEADROOM), len(data))
    assert length == reference.ip_length(data)
    if length:
        packet = data[:length]
        found = find_transport(array, len(HEADROOM), length)
        assert found == reference.find_transport(packet)
        kind, transport, _ = found
        assert flow_hash(array, len(HEADROOM), kind, transport) >> 31 == 0


@pytest.mark.parametrize(("body", "kind"), [(TCP(), ip.L4_TCP), (UDP(), ip.L4_UDP)])
def test_extension_headers_scapy_writes_are_walked_past(body: Packet, kind: int) -> None:
    chains: list[list[Packet]] = [
        [IPv6ExtHdrHopByHop()],
        [IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(addresses=["fd00::9"])],
        [AH(nh=kind, spi=1, payloadlen=4, icv=bytes(12))],
        [IPv6ExtHdrDestOpt()] * 7,
    ]
    for chain in chains:
        header: Packet = IPv6(src="fd00::1", dst="fd00::2")
        for extension in chain:
            header = header / extension
        packet = bytes(header / body / Raw(b"payload"))
        transport = len(packet) - len(bytes(body / Raw(b"payload")))
        assert find_transport(to_array(packet), 0, len(packet)) == (kind, transport, kind)


def test_tcp_header_longer_than_the_packet_is_opaque() -> None:
    packet = bytes(IP() / TCP(dataofs=15) / Raw(bytes(39)))
    assert find_transport(to_array(packet), 0, len(packet)) == (ip.L4_OPAQUE, 20, 6)
    packet = bytes(IP() / TCP(dataofs=15) / Raw(bytes(40)))
    assert find_transport(to_array(packet), 0, len(packet)) == (ip.L4_TCP, 20, 6)


@given(st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_loads_and_stores_are_big_endian(value: int, at: int) -> None:
    data = np.zeros(10, np.uint8)
    store32(data, at, value)
    assert data[at : at + 4].tobytes() == value.to_bytes(4, "big")
    assert load32(data, at) == value
    assert load16(data, at) == value >> 16
    store16(data, at, value & 0xFFFF)
    assert data.tobytes()[at : at + 2] == (value & 0xFFFF).to_bytes(2, "big")


def hash_of(packet: bytes) -> int:
    data = to_array(packet)
    kind, transport, _ = find_transport(data, 0, len(packet))
    return int(flow_hash(data, 0, kind, transport))


def test_hash_depends_on_the_flow_and_on_nothing_else() -> None:
    for version in (4, 6):
        for protocol in ("tcp", "udp"):
            flow = Flow.between(version, protocol, 1, TO)
            field = "ttl" if version == 4 else "hlim"
            hashes = {hash_of(flow.packet(bytes(n), {field: 60 + n})) for n in range(4)}
            assert len(hashes) == 1


def test_fragments_of_a_datagram_hash_alike() -> None:
    flow = Flow(protocol="udp")
    first, last = flow.packet(b"x" * 64, {"flags": "MF"}), flow.packet(b"y" * 64, {"frag": 8})
    assert hash_of(first) == hash_of(last)


def test_hash_spreads_flows_evenly() -> None:
    """Ports, or addresses, that count up: 4,096 flows over 16 lanes."""
    for version in (4, 6):
        template = bytearray(Flow.between(version, "udp", 0, TO).packet(b""))
        for at in (20 if version == 4 else 40, 14 if version == 4 else 22):  # port, host number
            lanes = np.zeros(16, int)
            for number in range(4096):
                template[at : at + 2] = number.to_bytes(2, "big")
                lanes[hash_of(bytes(template)) * 16 >> 31] += 1
            assert lanes.min() > 180
            assert lanes.max() < 340
