"""What a node wants under a network config, as plain values."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface, ip_network
from pathlib import Path

import pytest

from control import node
from control.etcd_config import EtcdConfig
from control.external_interface import ExternalInterface
from control.host_state import Route
from control.lease import NodeSubnet, Vtep
from control.network_config import NetworkConfig
from control.options import ControlOptions
from forwarder.config import ConfigError
from tests.control.nodes import CONFIG, DUAL_CONFIG

MAC = bytes.fromhex("0e0000000001")
OPTIONS = ControlOptions(EtcdConfig(), run_dir=Path("/nowhere"), device="loden7", lanes=3)
INTERFACE = ExternalInterface(
    "eth0", 2, 1500, IPv4Address("192.0.2.1"), None, IPv4Address("198.51.100.1"), None
)
DUAL_INTERFACE = replace(
    INTERFACE, ipv6=IPv6Address("fd77::1"), public_ipv6=IPv6Address("2001:db8::1")
)
SUBNET = NodeSubnet(IPv4Network("10.7.1.0/24"))
DUAL_SUBNET = NodeSubnet(IPv4Network("10.7.1.0/24"), IPv6Network("2001:cafe:42:1::/64"))


def test_lease_publishes_the_public_address_and_the_vtep() -> None:
    attrs = node.lease_attrs(CONFIG, INTERFACE, MAC)
    assert attrs.public_ip == IPv4Address("198.51.100.1")
    assert attrs.vtep == Vtep(1, "0e:00:00:00:00:01")
    assert (attrs.public_ipv6, attrs.vtep_v6) == (None, None)


def test_dual_stack_lease_publishes_both() -> None:
    attrs = node.lease_attrs(DUAL_CONFIG, DUAL_INTERFACE, MAC)
    assert attrs.public_ipv6 == IPv6Address("2001:db8::1")
    assert attrs.vtep == attrs.vtep_v6


@pytest.mark.parametrize(
    ("config", "interface", "mtu_bytes"),
    [
        (CONFIG, INTERFACE, 1450),
        (DUAL_CONFIG, DUAL_INTERFACE, 1430),
        (replace(CONFIG, mtu_bytes=9000), INTERFACE, 8950),
    ],
)
def test_overlay_mtu_leaves_room_for_every_underlay(
    config: NetworkConfig, interface: ExternalInterface, mtu_bytes: int
) -> None:
    assert node.overlay_mtu(config, interface) == mtu_bytes


def test_tunnel_binds_the_interfaces_own_address_not_the_public_one() -> None:
    tunnel = node.tunnel_config(OPTIONS, replace(CONFIG, vni=9, port=4789), INTERFACE, MAC)
    assert (tunnel.device, tunnel.vni, tunnel.port, tunnel.lanes) == ("loden7", 9, 4789, 3)
    assert (tunnel.mtu_bytes, tunnel.mac) == (1450, MAC)
    assert tunnel.addresses == (IPv4Address("192.0.2.1"),)


def test_underlay_too_narrow_for_packets_is_refused() -> None:
    with pytest.raises(ConfigError, match="mtu_bytes: 450 is not allowed"):
        node.tunnel_config(OPTIONS, CONFIG, replace(INTERFACE, mtu_bytes=500), MAC)


def test_host_has_the_subnets_address_and_a_route_for_each_network() -> None:
    state = node.host_state(DUAL_CONFIG, DUAL_SUBNET, 1430, set(), {})
    assert state.device is not None
    assert state.device.addresses == {
        ip_interface("10.7.1.0/32"),
        ip_interface("2001:cafe:42:1::/128"),
    }
    assert state.routes == {
        Route(ip_network("10.7.0.0/16"), source=IPv4Address("10.7.1.0")),
        Route(ip_network("2001:cafe:42::/56"), source=IPv6Address("2001:cafe:42:1::")),
    }


@pytest.mark.parametrize(
    ("prefix", "needs"),
    [
        ("10.7.2.0/24", False),  # another node's: the network's route leads there
        ("10.7.2.9/32", False),
        ("10.7.1.9/32", True),  # of our own subnet, moved away
        ("10.8.0.0/24", True),  # outside of the network
        ("2001:cafe:42:1::9/128", True),
        ("2001:cafe:42:2::9/128", False),
    ],
)
def test_kernel_needs_a_route_where_the_networks_does_not_lead(prefix: str, needs: bool) -> None:
    assert node.needs_kernel_route(ip_network(prefix), DUAL_CONFIG, DUAL_SUBNET) is needs
