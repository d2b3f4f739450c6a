"""The frames of the tunnel-GSO path, as scapy reads them, and which packets take it."""

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from forwarder.batch import Outbound
from forwarder.outbound import choose_whole, parse, route
from forwarder.tunnel import Tunnel
from forwarder.tunnel_gso import (
    GSO_UDP_TUNNEL_IPV4,
    GSO_UDP_TUNNEL_IPV6,
    VNET_TUNNEL,
    write_headers,
)
from forwarder.wire.virtio_net import GSO_TCPV4, GSO_TCPV6
from tests.forwarder.fibs import PORT, VNI, Fib
from tests.forwarder.packets import MAC_A, NET_B, NET_C, Flow, make_node
from tests.forwarder.stages import OWN_ADDRESSES, TAP_MAC, FromTun, make_tunnel, put_packets
from tests.forwarder.test_outbound import superpacket
from tests.reference.checksum import ones_sum, pseudo_header


@pytest.fixture(scope="module")
def node() -> Fib:
    return make_node("A")


def tunnel_with_tap() -> Tunnel:
    tunnel = make_tunnel(mac=MAC_A)
    tunnel.tunnel_gso[:] = 1
    return tunnel


@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("outer", [4, 6])
def test_frame_is_what_the_kernel_wants(
    outbound_batch: Outbound, node: Fib, inner: int, outer: int
) -> None:
    flow = Flow.between(inner, "tcp", 1, NET_B if outer == 4 else NET_C)
    packet = superpacket(flow.packet(bytes(3000)), 1370)
    put_packets(outbound_batch, [packet])
    parse(outbound_batch, 1)
    route(outbound_batch, 1, node.view, tunnel_with_tap())
    row = node.view.adjacencies[int(outbound_batch.adjacency[0])]
    start = int(outbound_batch.start[0])
    outbound_batch.data[start - 22 : start] = row[:22]
    if inner == 6:
        outbound_batch.data[start - 2 : start] = (0x86, 0xDD)
    first = write_headers(tunnel_with_tap(), outbound_batch, 0, row, 0xBB, 1, 77)
    frame = outbound_batch.data[first : start + len(packet.packet)].tobytes()

    vnet = np.frombuffer(frame[:24], VNET_TUNNEL)[0]
    written = Ether(frame[24:])
    ip, inner_type = (IP, IPv6)[outer == 6], (IP, IPv6)[inner == 6]
    assert (written.dst, written.src[:5]) == (TAP_MAC.hex(":"), "02:00")
    assert str(written[ip].src) == OWN_ADDRESSES[outer == 6]
    assert written[ip].dst == ("192.0.2.2" if outer == 4 else "2001:db8::c")
    assert (written[UDP].sport, written[UDP].dport) == (40001, PORT)
    assert (written[VXLAN].vni, written[VXLAN].flags) == (VNI, "Instance")
    assert bytes(written[VXLAN][inner_type]) == packet.packet
    if outer == 4:
        assert (written.tos, written.ttl, written.id, written[IP].flags) == (0xBB, 65, 77, 0)
        assert ones_sum(frame[38:58]) == 0xFFFF
    else:
        assert (written.tc, written.hlim) == (0xBB, 65)
    outer_ip = frame[38:]
    assert written[UDP].len == len(outer_ip) - (20 if outer == 4 else 40)
    assert written[UDP].chksum == ones_sum(pseudo_header(outer_ip, 17, written[UDP].len))

    inner_ip = frame.index(packet.packet) - 24
    inner_tcp = inner_ip + (20 if inner == 4 else 40)
    gso_type = (GSO_TCPV4 if inner == 4 else GSO_TCPV6) | (
        GSO_UDP_TUNNEL_IPV4 if outer == 4 else GSO_UDP_TUNNEL_IPV6
    )
    assert (vnet["flags"], vnet["gso_type"]) == (1 | 8, gso_type)
    assert (vnet["csum_start"], vnet["csum_offset"]) == (inner_tcp, 16)
    assert (vnet["hdr_len"], vnet["gso_size"]) == (inner_tcp + 20, 1370)
    assert vnet["inner_network_offset"] == inner_ip
    assert vnet["outer_transport_offset"] == 14 + (20 if outer == 4 else 40)


def chosen(batch: Outbound, node: Fib, *packets: FromTun) -> tuple[int, list[int]]:
    put_packets(batch, packets)
    parse(batch, len(packets))
    route(batch, len(packets), node.view, tunnel_with_tap())
    end = choose_whole(tunnel_with_tap(), batch, 0, len(packets), node.view)
    return int(end), batch.whole[:end].tolist()


def test_only_tcp_superpackets_that_fit_leave_whole(outbound_batch: Outbound, node: Fib) -> None:
    tcp, udp = (Flow.between(4, protocol, 1, NET_B) for protocol in ("tcp", "udp"))
    others = [
        superpacket(udp.packet(bytes(3000)), 1000),
        FromTun(tcp.packet(b"small")),
        superpacket(Flow.between(4, "tcp", 2, NET_B).packet(bytes(65535 - 40)), 1000),
    ]
    assert chosen(outbound_batch, node, *others) == (3, [0, 0, 0])
    whole = superpacket(tcp.packet(bytes(60000)), 1000)
    assert chosen(outbound_batch, node, whole, whole) == (2, [1, 1])


def test_no_packet_overtakes_an_earlier_one_of_its_flow(
    outbound_batch: Outbound, node: Fib
) -> None:
    flow = Flow.between(4, "tcp", 1, NET_B)
    small, whole = FromTun(flow.packet(b"small")), superpacket(flow.packet(bytes(3000)), 1000)
    # What leaves whole is sent first: the stretch must end before the second whole one.
    assert chosen(outbound_batch, node, whole, small, whole) == (2, [1, 0])
    assert chosen(outbound_batch, node, whole, small, small) == (3, [1, 0, 0])


def test_family_that_failed_the_probe_is_not_taken(outbound_batch: Outbound, node: Fib) -> None:
    whole = superpacket(Flow.between(4, "tcp", 1, NET_C).packet(bytes(3000)), 1000)
    assert chosen(outbound_batch, node, whole) == (1, [1])
    tunnel = tunnel_with_tap()
    tunnel.tunnel_gso[1] = 0
    assert choose_whole(tunnel, outbound_batch, 0, 1, node.view) == 1
    assert outbound_batch.whole[0] == 0
