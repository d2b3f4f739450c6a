"""Inbound: what reaches the TUN, and why the rest does not."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from forwarder.batch import Inbound, Outbound
from forwarder.counters import Drop
from forwarder.fib.routes import Blackhole, IPAddress
from forwarder.wire.virtio_net import NEEDS_CSUM
from tests.forwarder.fibs import PORT, VNI, Fib
from tests.forwarder.packets import (
    MAC_A,
    MAC_B,
    NET_A,
    NET_B,
    NET_C,
    VTEP_A,
    VTEP_C,
    Flow,
    encapsulated,
    flows,
    make_node,
    odd_packets,
    payloads,
    with_checksums,
    with_partial_checksum,
)
from tests.forwarder.stages import (
    Arrived,
    Delivery,
    FromTun,
    Written,
    make_tunnel,
    run_inbound,
    run_outbound,
)
from tests.forwarder.test_outbound import batches, segments_of
from tests.reference import coalescing, decapsulation
from tests.reference.decapsulation import ECN_MERGED, Node, ecn_of
from tests.reference.packet import flow_of
from tests.reference.routes import RouteTable
from tests.reference.segmentation import split

A = VTEP_A.address


@pytest.fixture(scope="module")
def node() -> Fib:
    return make_node("B")


def receive(batch: Inbound, node: Fib, *messages: Arrived) -> Delivery:
    return run_inbound(batch, make_tunnel(mac=MAC_B), node.view, messages)


def oracle_of(node: Fib) -> Node:
    table = RouteTable[object]()
    for prefix, hop in node.writer.routes.items():
        table.set(prefix, hop)
    return Node(VNI, MAC_B, table)  # type: ignore[arg-type]


# ---- cutting messages ---------------------------------------------------------------------------


def test_message_is_cut_where_its_datagrams_ended(inbound_batch: Inbound, node: Fib) -> None:
    packets = [Flow(ports=(n, 1)).packet(bytes(500)) for n in range(1, 5)]
    packets.append(Flow(ports=(9, 1)).packet(bytes(20)))
    frames = [encapsulated(packet) for packet in packets]
    message = Arrived(b"".join(frames), A, gro_bytes=len(frames[0]))
    delivery = receive(inbound_batch, node, message, Arrived(frames[0], A))
    assert list(delivery.packets.values()) == [*packets, packets[0]]


def test_inner_superpacket_is_not_cut_whatever_gro_says(inbound_batch: Inbound, node: Fib) -> None:
    packet = with_partial_checksum(Flow().packet(bytes(30000)))
    frame = encapsulated(packet)
    for gro_bytes in (0, 1388, 1460):
        delivery = receive(inbound_batch, node, Arrived(frame, A, gro_bytes))
        assert delivery.packets == {0: packet}


def test_empty_datagram_is_counted(inbound_batch: Inbound, node: Fib) -> None:
    frame = encapsulated(Flow().packet(b"x"))
    delivery = receive(inbound_batch, node, Arrived(b"", A), Arrived(frame, A))
    assert delivery.reasons == [Drop.TRUNCATED, Drop.NONE]


# ---- checks: one test for each reason -----------------------------------------------------------

PACKET = Flow().packet(b"payload")
FRAME = encapsulated(PACKET)


def drop_of(
    batch: Inbound, node: Fib, frame: bytes, sender: IPAddress = A, tos: int = 0
) -> tuple[Drop, Drop | bytes]:
    """(ours, the oracle's) for a frame between two good ones, which must be unharmed."""
    good = Arrived(FRAME, A)
    delivery = receive(batch, node, good, Arrived(frame, sender, tos=tos), good)
    assert (delivery.reasons[0], delivery.reasons[2]) == (Drop.NONE, Drop.NONE)
    assert (delivery.packets[0], delivery.packets[2]) == (PACKET, PACKET)
    return delivery.reasons[1], decapsulation.decapsulate(oracle_of(node), frame, sender, tos)


def changed(frame: bytes, at: int, value: int) -> bytes:
    return frame[:at] + bytes([value]) + frame[at + 1 :]


@pytest.mark.parametrize("length", [1, 7, 8, 21])
def test_decap_drops_truncated_frame(inbound_batch: Inbound, node: Fib, length: int) -> None:
    assert drop_of(inbound_batch, node, FRAME[:length]) == (Drop.TRUNCATED, Drop.TRUNCATED)


def test_decap_drops_frame_without_i_flag(inbound_batch: Inbound, node: Fib) -> None:
    for flags in (0x00, 0xF7):
        frame = changed(FRAME, 0, flags)
        assert drop_of(inbound_batch, node, frame) == (Drop.NO_VNI_FLAG, Drop.NO_VNI_FLAG)


@pytest.mark.parametrize("at", [0, 1, 2, 3, 7])
def test_decap_drops_frame_with_reserved_bits(inbound_batch: Inbound, node: Fib, at: int) -> None:
    for bit in (0x01, 0x80):
        frame = changed(FRAME, at, FRAME[at] | bit)
        assert drop_of(inbound_batch, node, frame) == (Drop.RESERVED_BITS, Drop.RESERVED_BITS)


@pytest.mark.parametrize("at", [4, 5, 6])
def test_decap_drops_frame_of_another_vni(inbound_batch: Inbound, node: Fib, at: int) -> None:
    frame = changed(FRAME, at, FRAME[at] ^ 0x80)
    assert drop_of(inbound_batch, node, frame) == (Drop.WRONG_VNI, Drop.WRONG_VNI)


@pytest.mark.parametrize("at", range(8, 14))
def test_decap_drops_frame_to_another_mac(inbound_batch: Inbound, node: Fib, at: int) -> None:
    frame = changed(FRAME, at, FRAME[at] ^ 1)
    assert drop_of(inbound_batch, node, frame) == (Drop.NOT_OUR_MAC, Drop.NOT_OUR_MAC)


def test_decap_drops_frame_from_our_own_mac(inbound_batch: Inbound, node: Fib) -> None:
    frame = encapsulated(PACKET, source=MAC_B)
    assert drop_of(inbound_batch, node, frame) == (Drop.OWN_SOURCE_MAC, Drop.OWN_SOURCE_MAC)


def test_decap_drops_frame_that_is_not_ip(inbound_batch: Inbound, node: Fib) -> None:
    arp = FRAME[:20] + b"\x08\x06" + FRAME[22:]
    assert drop_of(inbound_batch, node, arp) == (Drop.NOT_IP, Drop.NOT_IP)


@pytest.mark.parametrize(
    "inner",
    [
        b"",
        PACKET[:19],
        PACKET[:-1],
        b"\x44" + PACKET[1:],
        b"\x4f" + PACKET[1:30],
        b"\x65" + PACKET[1:],
        b"\x05" + PACKET[1:],
    ],
)
def test_decap_drops_malformed_inner_packet(
    inbound_batch: Inbound, node: Fib, inner: bytes
) -> None:
    frame = FRAME[:22] + inner
    assert drop_of(inbound_batch, node, frame) == (Drop.INNER_MALFORMED, Drop.INNER_MALFORMED)


def test_decap_drops_ipv6_under_an_ipv4_ethertype(inbound_batch: Inbound, node: Fib) -> None:
    frame = FRAME[:22] + Flow.between(6, "udp", 1, NET_B).packet(b"x")
    assert drop_of(inbound_batch, node, frame) == (Drop.INNER_MALFORMED, Drop.INNER_MALFORMED)


@pytest.mark.parametrize("stranger", [IPv4Address("198.51.100.9"), IPv6Address("2001:db8::9")])
def test_decap_drops_frame_from_unknown_vtep(
    inbound_batch: Inbound, node: Fib, stranger: IPAddress
) -> None:
    ours, oracles = drop_of(inbound_batch, node, FRAME, sender=stranger)
    assert (ours, oracles) == (Drop.UNKNOWN_VTEP, Drop.UNKNOWN_VTEP)


@pytest.mark.parametrize("source", [NET_C[4] + "2", NET_B[4] + "9", "10.9.0.1", "203.0.113.1"])
def test_decap_drops_inner_source_that_is_not_the_senders(
    inbound_batch: Inbound, source: str
) -> None:
    node = make_node("B")
    node.route_to(("10.9.0.0/16", Blackhole()))
    frame = encapsulated(Flow(source=source).packet(b"x"))
    assert drop_of(inbound_batch, node, frame) == (Drop.SPOOFED_SOURCE, Drop.SPOOFED_SOURCE)


def test_decap_takes_inner_source_from_its_own_vtep_only(inbound_batch: Inbound, node: Fib) -> None:
    packet = Flow(source=NET_C[4] + "2").packet(b"x")
    frame = encapsulated(packet)
    assert drop_of(inbound_batch, node, frame, VTEP_C.address) == (Drop.NONE, packet)
    assert drop_of(inbound_batch, node, frame, A)[0] == Drop.SPOOFED_SOURCE


@pytest.mark.parametrize("destination", [NET_C[4] + "2", NET_A[4] + "3", "203.0.113.1"])
def test_decap_drops_inner_destination_that_is_not_ours(
    inbound_batch: Inbound, node: Fib, destination: str
) -> None:
    frame = encapsulated(Flow(destination=destination).packet(b"x"))
    expected = (Drop.NOT_OUR_DESTINATION, Drop.NOT_OUR_DESTINATION)
    assert drop_of(inbound_batch, node, frame) == expected


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("inner", "outer"), list(ECN_MERGED))
def test_decap_merges_ecn_by_rfc_6040(
    inbound_batch: Inbound, node: Fib, version: int, inner: int, outer: int
) -> None:
    field, layer = ("tos", IP) if version == 4 else ("tc", IPv6)
    flow = Flow.between(version, "tcp", 1, NET_B)
    packet = flow.packet(b"payload", {field: 0xB8 | inner})
    outer_tos = 0x30 | outer
    delivery = receive(inbound_batch, node, Arrived(encapsulated(packet), A, tos=outer_tos))
    merged = ECN_MERGED[inner, outer]
    if merged is None:
        assert delivery.reasons == [Drop.ECN_INVALID]
        return
    # Only the field differs, and what scapy computes for the checksum over it.
    assert delivery.packets == {0: flow.packet(b"payload", {field: 0xB8 | merged})}
    assert layer(delivery.packets[0]).dst == flow.destination


def test_padding_behind_the_inner_packet_is_left_out(inbound_batch: Inbound, node: Fib) -> None:
    delivery = receive(inbound_batch, node, Arrived(FRAME + bytes(18), A))
    assert delivery.packets == {0: PACKET}
    assert delivery.written[0].packet == PACKET


# ---- whole batches, against the oracles ---------------------------------------------------------


@st.composite
def damaged_frames(draw: st.DrawFn) -> bytes:
    """A frame with a byte changed anywhere, or cut short."""
    flow = draw(flows(to=NET_B))
    frame = encapsulated(flow.packet(draw(payloads)))
    if draw(st.booleans()):
        return frame[: draw(st.integers(0, len(frame)))]
    at = draw(st.integers(0, min(len(frame), 90) - 1))
    return changed(frame, at, draw(st.integers(0, 255)))


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """A pod's superpacket in segments, now and then with one changed, doubled or left out."""
    flow = draw(flows(to=NET_B))
    fields: dict[str, object] = {}
    if flow.protocol == "tcp":
        fields["flags"] = draw(st.sampled_from(["A", "A", "PA", "FA", "CA"]))
        fields["seq"] = draw(st.sampled_from([0, 0xFFFFFF00]))
        fields["options"] = draw(st.sampled_from([[], [("Timestamp", (1, 2))]]))
    ip: dict[str, object] = {}
    if flow.version == 4:
        ip = {"id": draw(st.sampled_from([7, 65534])), "flags": draw(st.sampled_from(["DF", 0]))}
    size = draw(st.sampled_from([1, 100, 1370]))
    payload = bytes(
        i & 0xFF for i in range(size * draw(st.integers(1, 8)) + draw(st.integers(0, 9)))
    )
    packets = split(flow.packet(payload, ip, fields), size)
    if draw(st.booleans()):
        packets = [with_partial_checksum(packet) for packet in packets]
    victim = draw(st.integers(0, len(packets) - 1))
    match draw(st.sampled_from(["none", "none", "change", "double", "lose"])):
        case "change":
            at = draw(st.integers(0, min(len(packets[victim]), 60) - 1))
            damaged = changed(packets[victim], at, draw(st.integers(0, 255)))
            packets[victim] = with_checksums(damaged) if draw(st.booleans()) else damaged
        case "double":
            packets.insert(victim, packets[victim])
        case "lose":
            del packets[victim]
    return packets


@st.composite
def interleaved(draw: st.DrawFn) -> list[bytes]:
    """Several streams, and single packets between them, each in its own order."""
    queues = draw(st.lists(streams() | odd_packets().map(lambda p: [p]), min_size=1, max_size=5))
    order = draw(st.permutations([i for i, queue in enumerate(queues) for _ in queue]))
    return [queues[i].pop(0) for i in order]


@settings(max_examples=150)
@given(st.lists(damaged_frames() | st.binary(max_size=60), max_size=6), st.integers(0, 3))
def test_damaged_frames_get_the_oracles_verdict(
    inbound_batch: Inbound, node: Fib, frames: list[bytes], tos: int
) -> None:
    oracle = oracle_of(node)
    delivery = receive(inbound_batch, node, *(Arrived(f, A, tos=tos) for f in frames))
    for index, frame in enumerate(frames):
        verdict = decapsulation.decapsulate(oracle, frame, A, tos)
        ours = delivery.packets.get(index, delivery.reasons[index])
        assert ours == verdict


@settings(max_examples=250)
@given(interleaved())
def test_chains_are_those_of_the_oracle_and_come_apart_into_what_came(
    inbound_batch: Inbound, node: Fib, packets: list[bytes]
) -> None:
    delivery = receive(inbound_batch, node, *(Arrived(encapsulated(p), A) for p in packets))
    kept = sorted(delivery.packets)
    keys = [delivery.flows[frame] % 64 for frame in kept]
    arrived = [delivery.packets[frame] for frame in kept]
    chains = coalescing.coalesce(arrived, keys, 1450)
    assert [list(w.frames) for w in delivery.written] == [[kept[i] for i in c] for c in chains]
    for written in delivery.written:
        assert_comes_apart_into(written, [delivery.packets[frame] for frame in written.frames])


def assert_comes_apart_into(written: Written, packets: list[bytes]) -> None:
    """What the kernel makes of a write are the packets it was made of."""
    if len(packets) == 1:
        assert written.packet == packets[0]
        assert not written.vnet["gso_type"]
        return
    assert written.vnet["flags"] == NEEDS_CSUM
    assert with_partial_checksum(written.packet) == written.packet
    pieces = split(written.packet, written.vnet["gso_size"])
    assert [comparable(piece) for piece in pieces] == [comparable(packet) for packet in packets]


def comparable(packet: bytes) -> bytes:
    """Checksums finished; an IPv4 id means nothing with DF (RFC 6864), and may be another."""
    if packet[0] >> 4 == 4 and packet[6] & 0x40:
        packet = packet[:4] + b"\0\0" + packet[6:]
    return with_checksums(packet)


@settings(max_examples=40)
@given(batches)
def test_from_pod_to_pod_every_flow_arrives_whole_and_in_order(
    outbound_batch: Outbound, inbound_batch: Inbound, packets: list[FromTun]
) -> None:
    sender, receiver = make_node("A"), make_node("B")
    packets = [p for p in packets if receiver_of(p.packet) == "B"]
    tunnel = make_tunnel(mac=MAC_A)
    sent, reasons = run_outbound(outbound_batch, tunnel, sender.view, packets)
    assert set(reasons) <= {Drop.NONE}
    messages = [Arrived(b"".join(m.datagrams), A, len(m.datagrams[0]), m.tos) for m in sent]
    came: dict[tuple[bytes, ...], list[bytes]] = {}
    for at in range(0, len(messages), 64):
        delivery = receive(inbound_batch, receiver, *messages[at : at + 64])
        assert set(delivery.reasons) == {Drop.NONE}
        for written in delivery.written:
            for piece in come_apart(written):
                came.setdefault(flow_of(piece), []).append(comparable(piece))
    expected: dict[tuple[bytes, ...], list[bytes]] = {}
    for packet in packets:
        for segment in segments_of(packet):
            expected.setdefault(flow_of(segment), []).append(comparable(segment))
    assert came == expected


def receiver_of(packet: bytes) -> str:
    return "B" if flow_of(packet)[0].endswith(tuple(DESTINATIONS_OF_B)) else "C"


DESTINATIONS_OF_B = [
    IPv4Address(NET_B[4] + "3").packed,
    IPv6Address(NET_B[6] + "3").packed,
]


def come_apart(written: Written) -> list[bytes]:
    if written.vnet["gso_type"]:
        return split(written.packet, written.vnet["gso_size"])
    return [written.packet]


def test_ecn_of_the_outer_header_reaches_every_packet_of_a_message(
    inbound_batch: Inbound, node: Fib
) -> None:
    packets = split(Flow().packet(bytes(3000), {"tos": 2}), 1000)
    frames = [encapsulated(packet) for packet in packets]
    message = Arrived(b"".join(frames), A, len(frames[0]), tos=3)
    [written] = receive(inbound_batch, node, message).written
    assert ecn_of(written.packet) == 3
    assert len(written.frames) == 3
    assert VTEP_A.port == PORT
