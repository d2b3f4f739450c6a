"""Rehearsals tell what the workers would do, on the routes of node A or B."""

from ipaddress import ip_address

import numpy as np
import pytest

from forwarder import rehearsal
from forwarder.counters import Drop
from forwarder.fib.routes import Blackhole
from tests.forwarder.packets import (
    MAC_A,
    MAC_B,
    NET_A,
    NET_B,
    NET_C,
    VTEP_A,
    VTEP_B,
    VTEP_C,
    make_node,
)
from tests.forwarder.stages import MTU, make_tunnel


@pytest.mark.parametrize(
    ("destination", "reason"),
    [
        (NET_B[4] + "9", Drop.NONE),
        (NET_C[6] + "9", Drop.NONE),
        (NET_A[4] + "9", Drop.LOCAL_DESTINATION),
        ("10.9.0.1", Drop.BLACKHOLE),
        ("172.16.0.1", Drop.NO_ROUTE),
        ("2001:db8::1", Drop.NO_ROUTE),
    ],
)
def test_sending_ends_as_for_the_workers(destination: str, reason: Drop) -> None:
    node = make_node("A")
    node.route_to(("10.9.0.0/16", Blackhole()))
    outcome = rehearsal.send(make_tunnel(mac=MAC_A), node.view, ip_address(destination))
    assert (outcome.reason, outcome.whole) == (reason, False)


@pytest.mark.parametrize("destination", [NET_B[4] + "9", NET_B[6] + "9"])
def test_superpackets_leave_whole_where_that_path_is_on(destination: str) -> None:
    tunnel = make_tunnel(mac=MAC_A)
    tunnel.tunnel_gso[0] = 1  # the underlay's IPv4, whatever the pods'
    assert rehearsal.send(tunnel, make_node("A").view, ip_address(destination)).whole
    to_ipv6_vtep = ip_address(NET_C[4] + "9")
    assert not rehearsal.send(tunnel, make_node("A").view, to_ipv6_vtep).whole


def test_largest_packet_is_that_of_the_way_to_the_peer() -> None:
    node, there = make_node("A"), ip_address(NET_B[4] + "9")
    tunnel = make_tunnel(mac=MAC_A)
    assert rehearsal.send(tunnel, node.view, there).mtu_bytes == MTU
    limits = np.zeros(64, np.uint32)
    limits[dict(node.writer.adjacency_rows())[VTEP_B]] = 1280
    limits.flags.writeable = False
    narrow = tunnel._replace(path_mtu=limits)
    assert rehearsal.send(narrow, node.view, there).mtu_bytes == 1280


@pytest.mark.parametrize(
    ("source", "destination", "vtep", "reason"),
    [
        (NET_A[4] + "2", NET_B[4] + "2", VTEP_A.address, Drop.NONE),
        (NET_C[6] + "2", NET_B[6] + "2", VTEP_C.address, Drop.NONE),
        (NET_A[4] + "2", NET_B[4] + "2", VTEP_C.address, Drop.SPOOFED_SOURCE),
        (NET_A[4] + "2", NET_B[4] + "2", ip_address("192.0.2.99"), Drop.UNKNOWN_VTEP),
        (NET_A[4] + "2", NET_C[4] + "2", VTEP_A.address, Drop.NOT_OUR_DESTINATION),
    ],
)
def test_receiving_ends_as_for_the_workers(
    source: str, destination: str, vtep: object, reason: Drop
) -> None:
    ends = ip_address(source), ip_address(destination), ip_address(str(vtep))
    assert rehearsal.receive(make_tunnel(mac=MAC_B), make_node("B").view, *ends) == reason


def test_pods_of_different_versions_have_nothing_to_say_to_each_other() -> None:
    ends = ip_address(NET_A[4] + "2"), ip_address(NET_B[6] + "2"), VTEP_A.address
    with pytest.raises(ValueError, match="allowed are two of one IP version"):
        rehearsal.receive(make_tunnel(mac=MAC_B), make_node("B").view, *ends)
