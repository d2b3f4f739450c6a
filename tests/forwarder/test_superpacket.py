"""What the TUN is told about packets that a kernel peer left unfinished or whole."""

import pytest

from forwarder.batch import Inbound
from forwarder.wire.virtio_net import (
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
)
from tests.forwarder.fibs import Fib
from tests.forwarder.packets import (
    MAC_B,
    NET_B,
    VTEP_A,
    Flow,
    encapsulated,
    make_node,
    with_partial_checksum,
)
from tests.forwarder.stages import MTU, Arrived, Written, make_tunnel, run_inbound

NOTHING = dict.fromkeys(
    ("flags", "gso_type", "hdr_len", "gso_size", "csum_start", "csum_offset"), 0
)


@pytest.fixture(scope="module")
def node() -> Fib:
    return make_node("B")


def deliver(batch: Inbound, node: Fib, packet: bytes, gro_bytes: int = 0) -> Written:
    message = Arrived(encapsulated(packet), VTEP_A.address, gro_bytes)
    [written] = run_inbound(batch, make_tunnel(mac=MAC_B), node.view, [message]).written
    return written


@pytest.mark.parametrize(
    ("version", "protocol", "gso_type", "start", "offset"),
    [
        (4, "tcp", GSO_TCPV4, 20, 16),
        (6, "tcp", GSO_TCPV6, 40, 16),
        (4, "udp", GSO_UDP_L4, 20, 6),
        (6, "udp", GSO_UDP_L4, 40, 6),
    ],
)
def test_inner_superpacket_is_passed_on_as_one(
    inbound_batch: Inbound,
    node: Fib,
    version: int,
    protocol: str,
    gso_type: int,
    start: int,
    offset: int,
) -> None:
    flow = Flow.between(version, protocol, 1, NET_B)
    packet = flow.packet(bytes(range(256)) * 100)
    partial = with_partial_checksum(packet)
    header_bytes = start + (20 if protocol == "tcp" else 8)
    expected = {
        "flags": NEEDS_CSUM,
        "gso_type": gso_type,
        "hdr_len": header_bytes,
        "gso_size": 1000,
        "csum_start": start,
        "csum_offset": offset,
    }
    for came in (packet, partial):  # finished by the peer, or left to us
        written = deliver(inbound_batch, node, came, gro_bytes=1000)
        assert (written.vnet, written.packet) == (expected, partial)
    # Without UDP_GRO: TCP may be cut as the MTU asks; a datagram's bounds are its own.
    written = deliver(inbound_batch, node, partial)
    whole = {"gso_type": 0, "hdr_len": 0, "gso_size": 0}
    cut = {"gso_size": MTU - header_bytes}
    assert written.vnet == expected | (cut if protocol == "tcp" else whole)
    assert written.packet == partial


def test_superpacket_with_cwr_says_so(inbound_batch: Inbound, node: Fib) -> None:
    packet = Flow().packet(bytes(3000), transport={"flags": "CA"})
    assert deliver(inbound_batch, node, packet).vnet["gso_type"] == GSO_TCPV4 | GSO_ECN


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_unfinished_packet_is_marked(inbound_batch: Inbound, node: Fib, protocol: str) -> None:
    for version in (4, 6):
        flow = Flow.between(version, protocol, 1, NET_B)
        for payload in (b"", b"payload"):
            partial = with_partial_checksum(flow.packet(payload))
            written = deliver(inbound_batch, node, partial)
            start = 20 if version == 4 else 40
            offset = 16 if protocol == "tcp" else 6
            marked = {"flags": NEEDS_CSUM, "csum_start": start, "csum_offset": offset}
            assert written.vnet == NOTHING | marked
            assert written.packet == partial


def test_finished_packet_ships_as_it_came(inbound_batch: Inbound, node: Fib) -> None:
    packet = Flow().packet(b"payload")
    written = deliver(inbound_batch, node, packet)
    assert (written.vnet, written.packet) == (NOTHING, packet)


@pytest.mark.parametrize("size", [100, 20000])
def test_corruption_is_never_laundered(inbound_batch: Inbound, node: Fib, size: int) -> None:
    for protocol in ("tcp", "udp"):
        packet = Flow(protocol=protocol).packet(bytes(size))
        corrupted = packet[:-1] + b"\1"
        written = deliver(inbound_batch, node, corrupted, gro_bytes=1000)
        assert (written.vnet, written.packet) == (NOTHING, corrupted)


@pytest.mark.parametrize("fields", [{"proto": 50}, {"flags": "MF"}, {"frag": 9, "flags": 0}])
def test_what_is_neither_tcp_nor_udp_ships_as_it_came(
    inbound_batch: Inbound, node: Fib, fields: dict[str, object]
) -> None:
    packet = Flow(protocol="udp").packet(bytes(2000), fields)
    written = deliver(inbound_batch, node, packet)
    assert (written.vnet, written.packet) == (NOTHING, packet)
