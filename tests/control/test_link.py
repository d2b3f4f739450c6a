"""Reconciliation against a real kernel: a TUN device in a namespace, as the forwarder makes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
import pytun

from control.host_state import (
    TXQUEUELEN_PACKETS,
    AddRoute,
    Change,
    DeviceGoneError,
    HostState,
    Route,
    SetDevice,
    SetIPv6,
    overlay_state,
)
from control.link import (
    ROUTE_PROTOCOL,
    HostNetwork,
    NotPermittedError,
    RouteConflictError,
    device_has_feature,
)
from perf.namespace import Namespace
from perf.topology import Topology

pytestmark = pytest.mark.netns

DEVICE = "loden0"
NETWORK = IPv4Network("172.17.0.0/16")
SUBNET = IPv4Network("172.17.10.0/24")
NETWORK_IPV6 = IPv6Network("2001:cafe:42::/56")
SUBNET_IPV6 = IPv6Network("2001:cafe:42:4f::/64")
PEER = (IPv4Network("172.17.30.0/24"), IPv4Address("192.168.77.99"))
DESIRED = overlay_state([(NETWORK, SUBNET)], mtu_bytes=1450)


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A host with an underlay; the test runs inside its namespace."""
    with Topology(hosts=1, ipv6=True) as topology, topology.hosts[0].entered():
        yield topology.hosts[0]


@pytest.fixture
def tun(host: Namespace) -> Iterator[Any]:
    device = pytun.TunTapDevice(name=DEVICE, flags=pytun.IFF_TUN | pytun.IFF_NO_PI)
    yield device
    device.close()


@pytest.fixture
def network(host: Namespace) -> Iterator[HostNetwork]:
    with HostNetwork(DEVICE, [NETWORK, NETWORK_IPV6]) as network:
        yield network


def shown(host: Namespace, command: str) -> str:
    return host.run(["ip", *command.split()]).stdout


def test_fresh_device_becomes_as_desired(host: Namespace, tun: Any, network: HostNetwork) -> None:
    assert network.reconcile(DESIRED)

    link = shown(host, f"link show {DEVICE}")
    assert ",UP" in link
    assert "mtu 1450" in link
    assert f"qlen {TXQUEUELEN_PACKETS}" in link
    assert "inet 172.17.10.0/32" in shown(host, f"-4 address show {DEVICE}")
    assert f"172.17.0.0/16 dev {DEVICE} proto {ROUTE_PROTOCOL} scope link src 172.17.10.0" in shown(
        host, "route"
    )
    assert network.reconcile(DESIRED) == ()


def test_device_generates_no_ipv6_address_of_its_own(
    host: Namespace, tun: Any, network: HostNetwork
) -> None:
    network.reconcile(DESIRED)

    assert shown(host, f"-6 address show {DEVICE}") == ""


def test_dual_stack_has_address_and_route_in_both_families(
    host: Namespace, tun: Any, network: HostNetwork
) -> None:
    both = overlay_state([(NETWORK, SUBNET), (NETWORK_IPV6, SUBNET_IPV6)], mtu_bytes=1430)
    network.reconcile(both)

    assert "inet6 2001:cafe:42:4f::/128" in shown(host, f"-6 address show {DEVICE}")
    assert f"2001:cafe:42::/56 dev {DEVICE} proto {ROUTE_PROTOCOL} src 2001:cafe:42:4f::" in shown(
        host, "-6 route"
    )
    assert network.reconcile(both) == ()


def test_ipv6_overlay_works_where_ipv6_is_off_by_default(
    host: Namespace, tun: Any, network: HostNetwork
) -> None:
    host.set_sysctl(f"net/ipv6/conf/{DEVICE}/disable_ipv6", 1)
    only_ipv6 = overlay_state([(NETWORK_IPV6, SUBNET_IPV6)], mtu_bytes=1430)

    network.reconcile(only_ipv6)

    assert network.read_actual().routes == only_ipv6.routes


@pytest.mark.parametrize(
    "damage",
    [
        f"link set {DEVICE} down",
        f"link set {DEVICE} mtu 1300",
        f"address flush dev {DEVICE}",
        "route del 172.17.0.0/16",
        "route del 10.99.0.0/16",
        "route del 172.17.30.0/24",
    ],
)
def test_what_others_removed_is_put_back(
    host: Namespace, tun: Any, network: HostNetwork, damage: str
) -> None:
    desired = overlay_state(
        [(NETWORK, SUBNET)],
        mtu_bytes=1450,
        extra_prefixes=[IPv4Network("10.99.0.0/16")],
        direct=[PEER],
    )
    network.reconcile(desired)
    whole = network.read_actual()
    host.ip(damage)
    assert network.read_actual() != whole

    assert network.reconcile(desired)

    assert network.read_actual() == whole


def test_stale_addresses_and_routes_of_ours_go(
    host: Namespace, tun: Any, network: HostNetwork
) -> None:
    network.reconcile(overlay_state([(NETWORK, SUBNET)], mtu_bytes=1450, direct=[PEER]))
    moved = overlay_state([(NETWORK, IPv4Network("172.17.11.0/24"))], mtu_bytes=1450)

    network.reconcile(moved)

    routes = shown(host, "route")
    assert "src 172.17.11.0" in routes
    assert "172.17.30.0/24" not in routes
    assert "172.17.10.0" not in shown(host, f"address show {DEVICE}")


def test_what_is_not_ours_is_left_alone(host: Namespace, tun: Any, network: HostNetwork) -> None:
    host.ip(
        "route add 172.17.40.0/24 via 192.168.77.98",
        f"route add 10.50.0.0/16 via 192.168.77.98 proto {ROUTE_PROTOCOL}",
        "address add 10.1.2.3/24 dev eth0",
    )
    network.reconcile(DESIRED)
    network.remove()

    routes = shown(host, "route")
    assert "172.17.40.0/24 via 192.168.77.98" in routes
    assert "10.50.0.0/16 via 192.168.77.98" in routes
    assert "10.1.2.3/24" in shown(host, "address show eth0")


def test_remove_takes_back_addresses_and_routes(
    host: Namespace, tun: Any, network: HostNetwork
) -> None:
    network.reconcile(overlay_state([(NETWORK, SUBNET)], mtu_bytes=1450, direct=[PEER]))

    network.remove()

    assert "172.17." not in shown(host, "route")
    assert "172.17." not in shown(host, "address")


def test_remove_works_without_the_device(host: Namespace, tun: Any, network: HostNetwork) -> None:
    network.reconcile(overlay_state([(NETWORK, SUBNET)], mtu_bytes=1450, direct=[PEER]))
    tun.close()

    network.remove()

    assert network.read_actual() == HostState(None, frozenset())


def test_device_made_anew_is_set_up_again(host: Namespace, network: HostNetwork) -> None:
    for _ in range(2):
        device = pytun.TunTapDevice(name=DEVICE, flags=pytun.IFF_TUN | pytun.IFF_NO_PI)
        network.reconcile(DESIRED)
        assert network.read_actual().routes == DESIRED.routes
        device.close()


def test_missing_device_is_a_retryable_error(network: HostNetwork) -> None:
    with pytest.raises(DeviceGoneError, match="forwarder") as caught:
        network.reconcile(DESIRED)
    assert caught.value.retryable


def test_device_that_vanishes_under_a_change_is_a_retryable_error(network: HostNetwork) -> None:
    with pytest.raises(DeviceGoneError, match=f"set up with MTU 1450.*{DEVICE}"):
        network.apply([SetDevice(1450, 1_000, is_up=True)])


def test_foreign_route_to_the_network_is_named_and_the_rest_is_done(
    host: Namespace, tun: Any, network: HostNetwork
) -> None:
    host.ip("route add 172.17.0.0/16 via 192.168.77.98")
    desired = overlay_state([(NETWORK, SUBNET)], mtu_bytes=1450, direct=[PEER])

    with pytest.raises(RouteConflictError, match=r"172\.17\.0\.0/16.*another program"):
        network.reconcile(desired)

    assert Route(PEER[0], gateway=PEER[1]) in network.read_actual().routes
    assert "172.17.0.0/16 via 192.168.77.98" in shown(host, "route")


@pytest.mark.parametrize("change", [AddRoute(Route(NETWORK)), SetIPv6("accept_ra", "0")])
def test_missing_privilege_is_said_and_final(
    tun: Any, network: HostNetwork, change: Change
) -> None:
    os.seteuid(65534)  # takes the effective capabilities away until root is back
    try:
        with pytest.raises(NotPermittedError, match="CAP_NET_ADMIN") as caught:
            network.apply([change])
    finally:
        os.seteuid(0)
    assert not caught.value.retryable


def test_peer_on_the_wire_is_reached_directly_and_others_are_not(
    host: Namespace, network: HostNetwork
) -> None:
    assert network.reaches_directly(IPv4Address("192.168.77.99"))
    assert network.reaches_directly(IPv6Address("fd77::99"))
    assert not network.reaches_directly(IPv4Address("192.0.2.1"))
    host.ip("route del default")
    assert not network.reaches_directly(IPv4Address("192.0.2.1"))


def test_features_are_read_as_ethtool_shows_them(host: Namespace) -> None:
    for state in ("off", "on"):
        host.run(["ethtool", "-K", "eth0", "tx-udp_tnl-segmentation", state])
        assert device_has_feature("eth0", "tx-udp_tnl-segmentation") == (state == "on")
    assert not device_has_feature("eth0", "no-such-feature")
    with pytest.raises(DeviceGoneError, match="'eth9'"):
        device_has_feature("eth9", "tx-udp_tnl-segmentation")
