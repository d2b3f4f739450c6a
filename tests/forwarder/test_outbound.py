"""Outbound: what leaves for the underlay, datagram by datagram."""

from collections import defaultdict
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, PadN
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from forwarder.batch import SEGMENTS, Outbound
from forwarder.counters import Drop
from forwarder.dscp import COPY
from forwarder.fib.routes import Blackhole, RemoteVtep
from forwarder.fib.writer import pack_sockaddr
from forwarder.outbound import DATAGRAM_BYTES_MAX
from forwarder.udp import GSO_SEGMENTS
from forwarder.wire.virtio_net import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4
from tests.forwarder.fibs import Fib
from tests.forwarder.packets import (
    MAC_A,
    MAC_B,
    NET_A,
    NET_B,
    NET_C,
    VTEP_B,
    VTEP_C,
    Flow,
    encapsulated,
    flows,
    make_node,
    odd_packets,
    payloads,
    with_partial_checksum,
)
from tests.forwarder.stages import LANES, FromTun, Sent, make_tunnel, run_outbound
from tests.reference.decapsulation import addresses_of, ecn_of
from tests.reference.packet import CHECKSUM_AT, find_transport
from tests.reference.segmentation import split


@pytest.fixture(scope="module")
def node() -> Fib:
    return make_node("A")


def superpacket(packet: bytes, size: int) -> FromTun:
    """As the TUN hands over what a pod wrote at once."""
    kind, offset, _ = find_transport(packet)
    tcp_type = GSO_TCPV4 if packet[0] >> 4 == 4 else GSO_TCPV6
    return FromTun(
        with_partial_checksum(packet),
        gso_type=tcp_type if kind == 6 else GSO_UDP_L4,
        gso_size=size,
        csum_start=offset,
        csum_offset=CHECKSUM_AT[kind],
    )


def unfinished(packet: bytes) -> FromTun:
    """A single packet whose checksum is left to us."""
    kind, offset, _ = find_transport(packet)
    return FromTun(with_partial_checksum(packet), csum_start=offset, csum_offset=CHECKSUM_AT[kind])


def segments_of(packet: FromTun) -> list[bytes]:
    """What must arrive, by the oracle; of packets made by the functions above."""
    if packet.gso_type:
        return split(packet.packet, packet.gso_size)
    if packet.csum_start >= 0:  # the same packet, finished
        return split(packet.packet, 65535)
    return [packet.packet]


@st.composite
def superpackets(draw: st.DrawFn) -> FromTun:
    flow = draw(flows())
    size = draw(st.integers(1, 1370))
    payload = bytes(draw(st.integers(1, min(20000, 90 * size))))
    fields: dict[str, object] = {}
    if flow.protocol == "tcp":
        fields["flags"] = draw(st.sampled_from(["A", "PA", "FPA", "CA", "EA", "SA", "UA"]))
        fields["seq"] = draw(st.sampled_from([0, 1, 0xFFFFFFFF, 0xFFFF0000]))
        fields["options"] = draw(st.sampled_from([[], [("Timestamp", (1, 2))]]))
    ip: dict[str, object] = {"id": draw(st.integers(0, 65535))} if flow.version == 4 else {}
    return superpacket(flow.packet(payload, ip, fields), size)


@st.composite
def finished_or_unfinished(draw: st.DrawFn) -> FromTun:
    flow = draw(flows())
    payload = draw(payloads)
    make = unfinished if payload and draw(st.booleans()) else FromTun
    return make(flow.packet(payload))


batches = st.lists(
    superpackets() | finished_or_unfinished() | odd_packets().map(FromTun), max_size=10
)


def by_lane_and_vtep(sent: list[Sent]) -> dict[tuple[int, bytes], list[bytes]]:
    """Datagrams in the order the kernel gets them."""
    found: dict[tuple[int, bytes], list[bytes]] = defaultdict(list)
    for message in sorted(sent, key=lambda message: message.flush):
        found[message.lane, message.sockaddr] += message.datagrams
    return found


@settings(max_examples=80)
@given(batches, st.booleans())
def test_every_segment_leaves_once_whole_and_in_order(
    outbound_batch: Outbound, node: Fib, packets: list[FromTun], udp_gso: bool
) -> None:
    tunnel = make_tunnel(mac=MAC_A, udp_gso=udp_gso)
    sent, reasons = run_outbound(outbound_batch, tunnel, node.view, packets)
    assert reasons == [Drop.NONE] * len(packets)
    flow_hashes = outbound_batch.flow[: len(packets)].tolist()

    expected = defaultdict(list)
    for packet, flow_hash in zip(packets, flow_hashes, strict=True):
        vtep = vtep_of(packet.packet)
        family_lanes = 0 if vtep.address.version == 4 else LANES
        lane = family_lanes + (flow_hash * LANES >> 31)
        sockaddr = pack_sockaddr(vtep.address, vtep.port)
        for segment in segments_of(packet):
            expected[lane, sockaddr].append(encapsulated(segment, to=vtep.mac))
    assert by_lane_and_vtep(sent) == expected
    for message in sent:
        assert_kernel_takes(message, udp_gso)


def vtep_of(packet: bytes) -> RemoteVtep:
    is_for_b = str(addresses_of(packet)[1]).startswith((NET_B[4], "fd07:2:"))
    return VTEP_B if is_for_b else VTEP_C


def assert_kernel_takes(message: Sent, udp_gso: bool) -> None:
    """The rules of UDP_SEGMENT."""
    sizes = [len(datagram) for datagram in message.datagrams]
    assert 1 <= len(sizes) <= (GSO_SEGMENTS if udp_gso else 1)
    assert sum(sizes) <= DATAGRAM_BYTES_MAX
    assert all(size == sizes[0] for size in sizes[:-1])
    assert sizes[-1] <= sizes[0]
    assert {ecn_of(datagram[22:]) for datagram in message.datagrams} == {message.tos}


def test_segments_are_what_scapy_would_have_built(outbound_batch: Outbound, node: Fib) -> None:
    for version, header in ((4, IP), (6, IPv6)):
        for protocol, layer in (("tcp", TCP), ("udp", UDP)):
            flow = Flow.between(version, protocol, 1, NET_B)
            packet = superpacket(flow.packet(bytes(range(256)) * 10), 1000)
            sent, _ = run_outbound(outbound_batch, make_tunnel(mac=MAC_A), node.view, [packet])
            [message] = sent
            for datagram in message.datagrams:
                frame = VXLAN(datagram)
                assert frame.flags == "Instance"
                assert (frame[Ether].dst, frame[Ether].src) == (MAC_B.hex(":"), MAC_A.hex(":"))
                for inner in (frame[header], frame[layer]):
                    for field in ("len", "plen", "chksum"):
                        inner.fields.pop(field, None)
                assert bytes(frame) == datagram
            inner = [VXLAN(datagram)[header] for datagram in message.datagrams]
            assert b"".join(p[Raw].load for p in inner) == bytes(range(256)) * 10


def test_a_64_kib_superpacket_is_spread_evenly_over_two_messages(
    outbound_batch: Outbound, node: Fib
) -> None:
    flow = Flow.between(4, "tcp", 1, NET_B)
    packet = superpacket(flow.packet(bytes(65535 - 40)), 1410)
    sent, _ = run_outbound(outbound_batch, make_tunnel(), node.view, [packet])
    assert [len(message.datagrams) for message in sent] == [24, 23]


def test_small_packets_to_one_peer_leave_in_one_message(
    outbound_batch: Outbound, node: Fib
) -> None:
    flow = Flow.between(4, "udp", 1, NET_B)
    packets = [FromTun(flow.packet(bytes(64), {"id": n})) for n in range(GSO_SEGMENTS)]
    [message], _ = run_outbound(outbound_batch, make_tunnel(), node.view, packets)
    assert len(message.datagrams) == GSO_SEGMENTS


def test_segments_near_64_kib_travel_alone(outbound_batch: Outbound, node: Fib) -> None:
    flow = Flow.between(4, "tcp", 1, NET_B)
    packet = superpacket(flow.packet(bytes(65450)), 65400)
    tunnel = make_tunnel(mtu_bytes=65465)
    sent, reasons = run_outbound(outbound_batch, tunnel, node.view, [packet])
    assert reasons == [Drop.NONE]
    assert [[len(d) for d in message.datagrams] for message in sent] == [[65462], [112]]


def test_batch_of_more_segments_than_fit_is_sent_in_several_flushes(
    outbound_batch: Outbound, node: Fib
) -> None:
    flow = Flow.between(4, "udp", 1, NET_B)
    packets = [superpacket(flow.packet(bytes(400 * 100)), 100) for _ in range(4)]
    sent, reasons = run_outbound(outbound_batch, make_tunnel(), node.view, packets)
    assert reasons == [Drop.NONE] * 4
    assert [message.flush for message in sent] == sorted(message.flush for message in sent)
    assert sent[-1].flush == 1
    payload_bytes = sum(len(d) - 22 - 28 for m in sent for d in m.datagrams)
    assert payload_bytes == 4 * 400 * 100


@pytest.mark.parametrize(("dscp", "expected"), [(0, 0), (46, 46), (63, 63), (COPY, 10)])
def test_outer_tos_is_the_chosen_dscp_and_the_inner_ecn_field(
    outbound_batch: Outbound, node: Fib, dscp: int, expected: int
) -> None:
    for version in (4, 6):
        flow = Flow.between(version, "udp", 1, NET_B)
        field = "tos" if version == 4 else "tc"
        packets = [FromTun(flow.packet(b"x", {field: 10 << 2 | ecn})) for ecn in range(4)]
        sent, _ = run_outbound(outbound_batch, make_tunnel(dscp=dscp), node.view, packets)
        assert [message.tos for message in sent] == [expected << 2 | ecn for ecn in range(4)]


def test_each_flow_keeps_its_lane_and_flows_are_spread(outbound_batch: Outbound, node: Fib) -> None:
    for version in (4, 6):
        lanes = set()
        for number in range(64):
            flow = Flow.between(version, "tcp", number, NET_B)
            packets = [FromTun(flow.packet(bytes(size))) for size in (900, 1000, 1100)]
            sent, _ = run_outbound(outbound_batch, make_tunnel(), node.view, packets)
            assert len({message.lane for message in sent}) == 1
            lanes.add(sent[0].lane)
        assert lanes == set(range(LANES))


# ---- drops --------------------------------------------------------------------------------------


GOOD = FromTun(Flow().packet(b"good"))
_OPTIONS = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(196))])
LONG_HEADERS = bytes(
    IPv6(src=NET_A[6] + "2", dst=NET_B[6] + "2") / _OPTIONS / TCP(flags="A") / Raw(bytes(500))
)
"""40 bytes of IPv6, 200 of options, 20 of TCP."""


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (FromTun(b""), Drop.MALFORMED),
        (FromTun(GOOD.packet[:19]), Drop.MALFORMED),
        (FromTun(GOOD.packet[:-1]), Drop.MALFORMED),
        (FromTun(b"\x55" + GOOD.packet[1:]), Drop.MALFORMED),
        (FromTun(b"\x44" + GOOD.packet[1:]), Drop.MALFORMED),
        (FromTun(GOOD.packet, csum_start=30, csum_offset=14), Drop.MALFORMED),
        (FromTun(GOOD.packet, gso_type=GSO_TCPV4, gso_size=0), Drop.MALFORMED),
        (FromTun(Flow().packet(b""), gso_type=GSO_TCPV4, gso_size=100), Drop.MALFORMED),
        (superpacket(Flow().packet(bytes(SEGMENTS + 1)), 1), Drop.TOO_MANY_SEGMENTS),
        (superpacket(LONG_HEADERS, 100), Drop.HEADERS_TOO_LONG),
        (FromTun(Flow(destination="10.8.0.1").packet(b"")), Drop.NO_ROUTE),
        (FromTun(Flow(6, "udp", "fd07::1", "fd08::1").packet(b"")), Drop.NO_ROUTE),
        (FromTun(Flow(destination=NET_A[4] + "9").packet(b"")), Drop.LOCAL_DESTINATION),
        (FromTun(Flow(destination="10.9.0.1").packet(b"")), Drop.BLACKHOLE),
        (FromTun(Flow(destination=NET_C[4] + "9").packet(b"")), Drop.NO_UNDERLAY),
    ],
)
def test_bad_packet_gets_its_reason_and_its_neighbours_leave_as_they_were(
    outbound_batch: Outbound, bad: FromTun, reason: Drop
) -> None:
    node = make_node("A")
    node.route_to(("10.9.0.0/16", Blackhole()))
    tunnel = make_tunnel(families=(4,))
    sent, reasons = run_outbound(outbound_batch, tunnel, node.view, [GOOD, bad, GOOD])
    assert reasons == [Drop.NONE, reason, Drop.NONE]
    datagrams = [datagram for message in sent for datagram in message.datagrams]
    assert datagrams == [encapsulated(GOOD.packet)] * 2


def test_rewrite_and_socket_address_follow_the_route(outbound_batch: Outbound) -> None:
    node = make_node("A")
    moved = RemoteVtep(ip_address("198.51.100.7"), bytes.fromhex("0200000000ff"), 99, 4789)
    node.route_to((NET_B[4] + "2/32", moved))
    [message], _ = run_outbound(outbound_batch, make_tunnel(), node.view, [GOOD])
    assert message.sockaddr == pack_sockaddr(moved.address, 4789)
    assert message.datagrams == (encapsulated(GOOD.packet, to=moved.mac, vni=99),)
