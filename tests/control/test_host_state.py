"""The plan from what is wished and what is found to changes; no kernel involved."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

import pytest

from control.host_state import (
    AddAddress,
    AddRoute,
    DeviceGoneError,
    DeviceState,
    HostState,
    RemoveAddress,
    RemoveRoute,
    Route,
    SetDevice,
    SetIPv6,
    lies_inside,
    overlay_state,
    plan_changes,
)

NETWORK = IPv4Network("172.17.0.0/16")
SUBNET = IPv4Network("172.17.10.0/24")
NETWORK_IPV6 = IPv6Network("2001:cafe:42::/56")
SUBNET_IPV6 = IPv6Network("2001:cafe:42:4f::/64")

FRESH = HostState(
    DeviceState(
        mtu_bytes=1500,
        txqueuelen_packets=500,
        is_up=False,
        addresses=frozenset(),
        ipv6_settings=frozenset({("addr_gen_mode", "0"), ("accept_ra", "1"), ("autoconf", "1")}),
    ),
    routes=frozenset(),
)


def test_node_gets_zero_address_and_one_route_per_network() -> None:
    state = overlay_state([(NETWORK, SUBNET), (NETWORK_IPV6, SUBNET_IPV6)], mtu_bytes=1450)

    assert state.device is not None
    assert state.device.addresses == {
        IPv4Interface("172.17.10.0/32"),
        IPv6Interface("2001:cafe:42:4f::/128"),
    }
    assert state.routes == {
        Route(NETWORK, source=SUBNET.network_address),
        Route(NETWORK_IPV6, source=SUBNET_IPV6.network_address),
    }


def test_fresh_device_is_set_up_in_an_order_the_kernel_accepts() -> None:
    changes = plan_changes(overlay_state([(NETWORK, SUBNET)], mtu_bytes=1450), FRESH)

    assert changes == (
        SetIPv6("accept_ra", "0"),
        SetIPv6("addr_gen_mode", "1"),
        SetIPv6("autoconf", "0"),
        SetDevice(1450, 5_000, is_up=True),
        AddAddress(IPv4Interface("172.17.10.0/32")),
        AddRoute(Route(NETWORK, source=SUBNET.network_address)),
    )


def test_state_as_desired_needs_no_change() -> None:
    desired = overlay_state([(NETWORK, SUBNET)], mtu_bytes=1450)

    assert plan_changes(desired, desired) == ()


def test_new_subnet_replaces_address_between_old_and_new_route() -> None:
    before = overlay_state([(NETWORK, SUBNET)], mtu_bytes=1450)
    after = overlay_state([(NETWORK, IPv4Network("172.17.11.0/24"))], mtu_bytes=1450)

    assert plan_changes(after, before) == (
        RemoveRoute(Route(NETWORK, source=IPv4Address("172.17.10.0"))),
        RemoveAddress(IPv4Interface("172.17.10.0/32")),
        AddAddress(IPv4Interface("172.17.11.0/32")),
        AddRoute(Route(NETWORK, source=IPv4Address("172.17.11.0"))),
    )


def test_extra_prefixes_and_direct_peers_become_routes() -> None:
    peer = IPv4Network("172.17.30.0/24")
    state = overlay_state(
        [(NETWORK, SUBNET)],
        mtu_bytes=1450,
        extra_prefixes=[IPv4Network("10.99.0.0/16")],
        direct=[(peer, IPv4Address("192.168.77.11"))],
    )

    assert Route(IPv4Network("10.99.0.0/16"), source=SUBNET.network_address) in state.routes
    assert Route(peer, gateway=IPv4Address("192.168.77.11")) in state.routes


def test_direct_route_outside_the_network_is_refused() -> None:
    outside = (IPv4Network("10.1.0.0/24"), IPv4Address("192.168.77.11"))

    with pytest.raises(ValueError, match=r"10\.1\.0\.0/24.*none of the overlay's networks"):
        overlay_state([(NETWORK, SUBNET)], mtu_bytes=1450, direct=[outside])


def test_missing_device_is_said_and_worth_retrying() -> None:
    with pytest.raises(DeviceGoneError, match="forwarder") as caught:
        plan_changes(
            overlay_state([(NETWORK, SUBNET)], mtu_bytes=1450), HostState(None, frozenset())
        )
    assert caught.value.retryable


def test_ipv6_settings_are_left_alone_where_the_kernel_has_none() -> None:
    assert FRESH.device is not None
    without = replace(FRESH, device=replace(FRESH.device, ipv6_settings=frozenset()))

    changes = plan_changes(overlay_state([(NETWORK, SUBNET)], mtu_bytes=1450), without)

    assert not any(isinstance(change, SetIPv6) for change in changes)


def test_ipv6_overlay_switches_ipv6_on_for_its_device() -> None:
    assert FRESH.device is not None
    disabled = FRESH.device.ipv6_settings | {("disable_ipv6", "1")}
    actual = replace(FRESH, device=replace(FRESH.device, ipv6_settings=disabled))

    changes = plan_changes(overlay_state([(NETWORK_IPV6, SUBNET_IPV6)], mtu_bytes=1430), actual)

    assert SetIPv6("disable_ipv6", "0") in changes


def test_lies_inside_never_mixes_address_families() -> None:
    assert lies_inside(SUBNET, [NETWORK_IPV6, NETWORK])
    assert not lies_inside(NETWORK, [SUBNET])
    assert not lies_inside(IPv6Network("::/0"), [IPv4Network("0.0.0.0/0")])
