"""What may be merged towards the TUN: one rule at a time, on two or three packets."""

from typing import Any

import pytest

from forwarder.batch import CHAIN_MAX, OPEN_SLOTS, Inbound
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
from tests.forwarder.stages import MTU, Arrived, make_tunnel, run_inbound

TCP = Flow.between(4, "tcp", 1, NET_B)
TCP6 = Flow.between(6, "tcp", 1, NET_B)
UDP = Flow.between(4, "udp", 1, NET_B)
UDP6 = Flow.between(6, "udp", 1, NET_B)
SIZE = 100


@pytest.fixture(scope="module")
def node() -> Fib:
    return make_node("B")


def chains_of(batch: Inbound, node: Fib, *packets: bytes) -> list[tuple[int, ...]]:
    tunnel = make_tunnel(mac=MAC_B)
    messages = [Arrived(encapsulated(packet), VTEP_A.address) for packet in packets]
    delivery = run_inbound(batch, tunnel, node.view, messages)
    assert len(delivery.packets) == len(packets)
    return [written.frames for written in delivery.written]


def segment(
    flow: Flow, index: int, size: int = SIZE, ip: dict[str, Any] | None = None, **transport: Any
) -> bytes:
    """Number `index` of a flow's segments of SIZE bytes."""
    ip = ({"id": 1000 + index} if flow.version == 4 else {}) | (ip or {})
    transport = {"seq": 5000 + index * SIZE, **transport} if flow.protocol == "tcp" else {}
    return flow.packet(bytes([index]) * size, ip, transport)


@pytest.mark.parametrize("flow", [TCP, TCP6, UDP, UDP6])
def test_segments_in_a_row_become_one(inbound_batch: Inbound, node: Fib, flow: Flow) -> None:
    packets = [segment(flow, n) for n in range(4)]
    assert chains_of(inbound_batch, node, *packets) == [(0, 1, 2, 3)]


@pytest.mark.parametrize("flow", [TCP, UDP6])
def test_a_shorter_one_is_the_last(inbound_batch: Inbound, node: Fib, flow: Flow) -> None:
    packets = [segment(flow, 0), segment(flow, 1, SIZE - 1)]
    following = segment(flow, 2, seq=5000 + 2 * SIZE - 1)
    assert chains_of(inbound_batch, node, *packets, following) == [(0, 1), (2,)]


def test_one_with_psh_is_the_last(inbound_batch: Inbound, node: Fib) -> None:
    packets = [segment(TCP, 0), segment(TCP, 1, flags="PA"), segment(TCP, 2)]
    assert chains_of(inbound_batch, node, *packets) == [(0, 1), (2,)]
    assert chains_of(inbound_batch, node, *packets[1:]) == [(0,), (1,)]


@pytest.mark.parametrize("flags", ["S", "SA", "FA", "RA", "UA", "EA", "CA", "", "P"])
def test_only_plain_acks_merge(inbound_batch: Inbound, node: Fib, flags: str) -> None:
    odd = segment(TCP, 1, flags=flags)
    packets = [segment(TCP, 0), odd, segment(TCP, 2)]
    assert chains_of(inbound_batch, node, *packets) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("flow", [TCP, TCP6])
@pytest.mark.parametrize(
    "changes",
    [
        {"seq": 5000 + SIZE + 1},
        {"seq": 5000},
        {"ack": 78},
        {"window": 1},
        {"urgptr": 1},
        {"options": [("Timestamp", (1, 2))]},
        {"reserved": 1},
    ],
)
def test_tcp_header_that_differs_keeps_segments_apart(
    inbound_batch: Inbound, node: Fib, flow: Flow, changes: dict[str, Any]
) -> None:
    packets = [segment(flow, 0), segment(flow, 1, **changes)]
    assert chains_of(inbound_batch, node, *packets) == [(0,), (1,)]


def test_tcp_options_merge_only_when_equal(inbound_batch: Inbound, node: Fib) -> None:
    stamped = [segment(TCP, n, options=[("Timestamp", (5, 6))]) for n in range(2)]
    later = segment(TCP, 1, options=[("Timestamp", (6, 6))])
    assert chains_of(inbound_batch, node, *stamped) == [(0, 1)]
    assert chains_of(inbound_batch, node, stamped[0], later) == [(0,), (1,)]


def test_sequence_numbers_wrap(inbound_batch: Inbound, node: Fib) -> None:
    packets = [segment(TCP, 0, seq=(1 << 32) - SIZE), segment(TCP, 1, seq=0)]
    assert chains_of(inbound_batch, node, *packets) == [(0, 1)]


@pytest.mark.parametrize(
    "fields", [{"ttl": 9}, {"tos": 4}, {"tos": 3}, {"flags": 0}, {"options": b"\x94\4\0\0"}]
)
@pytest.mark.parametrize("flow", [TCP, UDP])
def test_ipv4_header_that_differs_keeps_packets_apart(
    inbound_batch: Inbound, node: Fib, flow: Flow, fields: dict[str, Any]
) -> None:
    packets = [segment(flow, 0), segment(flow, 1, ip=fields)]
    assert chains_of(inbound_batch, node, *packets) == [(0,), (1,)]


@pytest.mark.parametrize("fields", [{"hlim": 9}, {"tc": 4}, {"tc": 3}, {"fl": 1}, {"fl": 0x90000}])
@pytest.mark.parametrize("flow", [TCP6, UDP6])
def test_ipv6_header_that_differs_keeps_packets_apart(
    inbound_batch: Inbound, node: Fib, flow: Flow, fields: dict[str, Any]
) -> None:
    packets = [segment(flow, 0), segment(flow, 1, ip=fields)]
    assert chains_of(inbound_batch, node, *packets) == [(0,), (1,)]


def test_ids_must_count_up_unless_df_is_set(inbound_batch: Inbound, node: Fib) -> None:
    for flags, second, expected in (
        (0, 1001, [(0, 1)]),
        (0, 1002, [(0,), (1,)]),
        ("DF", 7, [(0, 1)]),
    ):
        fields = {"flags": flags}
        packets = [
            segment(TCP, 0, ip=fields),
            segment(TCP, 1, ip={**fields, "id": second}),
        ]
        assert chains_of(inbound_batch, node, *packets) == expected


def test_ip_options_and_fragments_ship_alone(inbound_batch: Inbound, node: Fib) -> None:
    for fields in ({"options": b"\x94\4\0\0"}, {"flags": "MF"}, {"frag": 8, "flags": 0}):
        packets = [segment(UDP, n, ip=fields) for n in range(2)]
        assert chains_of(inbound_batch, node, *packets) == [(0,), (1,)]


@pytest.mark.parametrize("flow", [TCP, TCP6, UDP, UDP6])
@pytest.mark.parametrize("victim", [0, 1])
def test_corrupted_packet_ships_alone_as_it_came(
    inbound_batch: Inbound, node: Fib, flow: Flow, victim: int
) -> None:
    packets = [segment(flow, n) for n in range(4)]
    packets[victim] = packets[victim][:-1] + b"\xff"
    # What comes after it is whole again, and starts anew.
    expected = [(0,), (1, 2, 3)] if victim == 0 else [(0,), (1,), (2, 3)]
    assert chains_of(inbound_batch, node, *packets) == expected


def test_corrupted_ip_header_ships_alone(inbound_batch: Inbound, node: Fib) -> None:
    packets = [segment(TCP, n) for n in range(2)]
    packets[1] = packets[1][:10] + b"\0\0" + packets[1][12:]
    assert chains_of(inbound_batch, node, *packets) == [(0,), (1,)]


def test_udp_without_checksum_ships_alone(inbound_batch: Inbound, node: Fib) -> None:
    packets = [segment(UDP, n) for n in range(3)]
    packets[1] = packets[1][:26] + b"\0\0" + packets[1][28:]
    assert chains_of(inbound_batch, node, *packets) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("flow", [TCP, UDP6])
def test_partial_checksums_merge_among_themselves_and_with_right_ones(
    inbound_batch: Inbound, node: Fib, flow: Flow
) -> None:
    packets = [segment(flow, n) for n in range(4)]
    packets[1:3] = [with_partial_checksum(packet) for packet in packets[1:3]]
    assert chains_of(inbound_batch, node, *packets) == [(0, 1, 2, 3)]


@pytest.mark.parametrize("flow", [TCP, UDP])
def test_empty_payload_ships_alone(inbound_batch: Inbound, node: Fib, flow: Flow) -> None:
    packets = [segment(flow, 0), segment(flow, 1, size=0), segment(flow, 1)]
    assert chains_of(inbound_batch, node, *packets)[:2] == [(0,), (1,)]


def slot_of(batch: Inbound, node: Fib, flow: Flow) -> int:
    message = Arrived(encapsulated(segment(flow, 0)), VTEP_A.address)
    tunnel = make_tunnel(mac=MAC_B)
    return run_inbound(batch, tunnel, node.view, [message]).flows[0] % OPEN_SLOTS


def test_flows_side_by_side_each_keep_their_order(inbound_batch: Inbound, node: Fib) -> None:
    flows = [Flow.between(4, "tcp", number, NET_B) for number in range(500)]
    slots = {slot_of(inbound_batch, node, flow): flow for flow in flows}
    assert len(slots) == OPEN_SLOTS
    chosen = list(slots.values())[:20]
    packets = [segment(flow, n) for n in range(3) for flow in chosen]
    chains = chains_of(inbound_batch, node, *packets)
    assert chains == [(n, n + 20, n + 40) for n in range(20)]


def test_flows_of_one_slot_take_turns(inbound_batch: Inbound, node: Fib) -> None:
    flows = [Flow.between(4, "tcp", number, NET_B) for number in range(200)]
    mine = slot_of(inbound_batch, node, flows[0])
    other = next(f for f in flows[1:] if slot_of(inbound_batch, node, f) == mine)
    packets = [segment(flows[0], 0), segment(flows[0], 1), segment(other, 0), segment(flows[0], 2)]
    assert chains_of(inbound_batch, node, *packets) == [(0, 1), (2,), (3,)]


def test_a_chain_has_its_limits(inbound_batch: Inbound, node: Fib) -> None:
    tunnel = make_tunnel(mac=MAC_B)
    for count, size, first in ((CHAIN_MAX + 6, SIZE, CHAIN_MAX), (50, 1400, 46)):
        packets = [UDP.packet(bytes(size), {"id": n}) for n in range(count)]
        frames = [encapsulated(packet) for packet in packets]
        half = count // 2
        messages = [
            Arrived(b"".join(part), VTEP_A.address, len(frames[0]))
            for part in (frames[:half], frames[half:])
        ]
        delivery = run_inbound(inbound_batch, tunnel, node.view, messages)
        assert [len(w.frames) for w in delivery.written] == [first, count - first]
        assert all(len(w.packet) <= 65535 for w in delivery.written)
    assert tunnel.mtu_bytes == MTU
