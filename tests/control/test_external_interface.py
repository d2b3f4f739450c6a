"""The choice of the underlay's interface, as flanneld makes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from control.external_interface import (
    ExternalInterface,
    ExternalInterfaceError,
    HostInterface,
    HostInterfaces,
    InterfaceChoice,
    choose_external_interface,
    find_external_interface,
)
from perf.namespace import Namespace
from perf.topology import Topology

LO = HostInterface("lo", 1, 65536, True, (IPv4Address("127.0.0.1"),))
ETH0 = HostInterface(
    "eth0",
    2,
    1500,
    True,
    (IPv4Address("192.168.77.10"), IPv4Address("10.0.0.10"), IPv6Address("fd77::10")),
)
ETH1 = HostInterface("eth1", 3, 9000, True, (IPv4Address("10.1.0.10"),))
BARE = HostInterface("eth2", 4, 1500, True, (IPv6Address("fe80::1"),))
DOWN = HostInterface("eth3", 5, 1500, False, (IPv4Address("10.3.0.10"),))
HOST = HostInterfaces((LO, ETH0, ETH1, BARE, DOWN), default_ipv4_index=2, default_ipv6_index=3)


def refusal(choice: InterfaceChoice, host: HostInterfaces = HOST) -> ExternalInterfaceError:
    with pytest.raises(ExternalInterfaceError) as caught:
        choose_external_interface(choice, host)
    return caught.value


def test_default_is_the_interface_of_the_default_route() -> None:
    assert choose_external_interface(InterfaceChoice(), HOST) == ExternalInterface(
        name="eth0",
        index=2,
        mtu_bytes=1500,
        ipv4=IPv4Address("192.168.77.10"),
        ipv6=None,
        public_ipv4=IPv4Address("192.168.77.10"),
        public_ipv6=None,
    )


def test_ipv6_only_goes_by_the_ipv6_default_route() -> None:
    choice = InterfaceChoice(needs_ipv4=False, needs_ipv6=True)

    chosen = choose_external_interface(choice, replace(HOST, default_ipv6_index=2))

    assert (chosen.ipv4, chosen.public_ipv4) == (None, None)
    assert chosen.ipv6 == IPv6Address("fd77::10")


@pytest.mark.parametrize(
    ("choice", "name", "address"),
    [
        (InterfaceChoice(ifaces=("eth1",)), "eth1", "10.1.0.10"),
        (InterfaceChoice(ifaces=("10.0.0.10",)), "eth0", "10.0.0.10"),
        (InterfaceChoice(ifaces=("eth9", "eth1", "eth0")), "eth1", "10.1.0.10"),
        (InterfaceChoice(ifaces=("fd77::10",)), "eth0", "192.168.77.10"),
        (InterfaceChoice(regexes=(r"^10\.1\.",)), "eth1", "10.1.0.10"),
        (InterfaceChoice(regexes=(r"^10\.0\.",)), "eth0", "10.0.0.10"),
        (InterfaceChoice(regexes=("^nothing", "h1$")), "eth1", "10.1.0.10"),
        (InterfaceChoice(ifaces=("eth9",), regexes=("^eth1$",)), "eth1", "10.1.0.10"),
    ],
)
def test_first_flag_that_matches_wins(choice: InterfaceChoice, name: str, address: str) -> None:
    chosen = choose_external_interface(choice, HOST)

    assert (chosen.name, str(chosen.ipv4)) == (name, address)


def test_regex_matches_addresses_before_names() -> None:
    named_like_an_address = HostInterface("v10.1", 7, 1500, True, (IPv4Address("10.9.9.9"),))
    host = HostInterfaces((named_like_an_address, ETH1))

    chosen = choose_external_interface(InterfaceChoice(regexes=(r"10\.1",)), host)

    assert chosen.name == "eth1"


def test_can_reach_takes_interface_and_source_of_the_route() -> None:
    host = replace(HOST, reaching_index=2, reaching_source=IPv4Address("10.0.0.10"))

    chosen = choose_external_interface(InterfaceChoice(can_reach=IPv4Address("10.0.0.1")), host)

    assert (chosen.name, chosen.ipv4) == ("eth0", IPv4Address("10.0.0.10"))


def test_public_addresses_replace_only_what_is_published() -> None:
    choice = InterfaceChoice(
        public_ipv4=IPv4Address("203.0.113.5"),
        public_ipv6=IPv6Address("2001:db8::5"),
        needs_ipv6=True,
    )
    chosen = choose_external_interface(choice, HOST)

    assert (chosen.ipv4, chosen.ipv6) == (IPv4Address("192.168.77.10"), IPv6Address("fd77::10"))
    assert chosen.public_ipv4 == IPv4Address("203.0.113.5")
    assert chosen.public_ipv6 == IPv6Address("2001:db8::5")


@pytest.mark.parametrize(
    ("choice", "message", "retryable"),
    [
        (InterfaceChoice(ifaces=("eth9",)), "--iface: no interface named 'eth9'", False),
        (InterfaceChoice(ifaces=("10.9.9.9",)), "with the address '10.9.9.9'", False),
        (InterfaceChoice(regexes=("^wl",)), "--iface-regex: no interface matches '^wl'", False),
        (InterfaceChoice(regexes=("(",)), "'(' is not a regular expression", False),
        (InterfaceChoice(can_reach=IPv4Address("8.8.8.8")), "--iface-can-reach", True),
        (InterfaceChoice(ifaces=("eth3",)), "interface 'eth3' is down", True),
        (InterfaceChoice(ifaces=("eth2",)), "interface 'eth2' has no IPv4 address", True),
        (
            InterfaceChoice(ifaces=("eth2",), needs_ipv4=False, needs_ipv6=True),
            "interface 'eth2' has no IPv6 address",
            True,
        ),
    ],
)
def test_refusal_names_flag_and_value(
    choice: InterfaceChoice, message: str, retryable: bool
) -> None:
    error = refusal(choice)

    assert message in str(error)
    assert error.retryable == retryable


def test_refusal_lists_what_there_is() -> None:
    error = refusal(InterfaceChoice(ifaces=("eth9",)), HostInterfaces((LO, ETH1)))

    assert str(error).endswith("(there are: lo 127.0.0.1, eth1 10.1.0.10)")


def test_no_default_route_asks_for_the_flag_and_may_come_later() -> None:
    error = refusal(InterfaceChoice(), HostInterfaces((LO, ETH1)))

    assert "no IPv4 default route" in str(error)
    assert "--iface" in str(error)
    assert error.retryable


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Topology(hosts=1, ipv6=True, mtu_bytes=1400) as topology, topology.hosts[0].entered():
        yield topology.hosts[0]


@pytest.mark.netns
def test_kernel_s_default_route_address_and_mtu_are_found(host: Namespace) -> None:
    chosen = find_external_interface(InterfaceChoice(needs_ipv6=True))

    assert (chosen.name, chosen.mtu_bytes) == ("eth0", 1400)
    assert (str(chosen.ipv4), str(chosen.ipv6)) == ("192.168.77.10", "fd77::10")


@pytest.mark.netns
def test_kernel_s_default_route_with_the_lowest_metric_wins(host: Namespace) -> None:
    host.ip(
        "link set unplugged up",
        "address add 10.5.0.1/24 dev unplugged",
        "route add default via 10.5.0.2 metric 50",
    )
    assert find_external_interface(InterfaceChoice()).name == "eth0"

    host.ip("route del default dev eth0", "route add default dev eth0 via 192.168.77.1 metric 100")

    assert find_external_interface(InterfaceChoice()).name == "unplugged"


@pytest.mark.netns
def test_kernel_says_which_interface_reaches_an_address(host: Namespace) -> None:
    host.ip(
        "address add 10.5.0.1/24 dev unplugged",
        "route add 203.0.113.0/24 via 10.5.0.2",
    )
    chosen = find_external_interface(InterfaceChoice(can_reach=IPv4Address("203.0.113.9")))

    assert (chosen.name, str(chosen.ipv4)) == ("unplugged", "10.5.0.1")


@pytest.mark.netns
def test_kernel_without_default_route_is_told_apart_from_one_with(host: Namespace) -> None:
    host.ip("route del default", "route del ::/0 dev eth0")

    with pytest.raises(ExternalInterfaceError, match="no IPv4 default route"):
        find_external_interface(InterfaceChoice())
    with pytest.raises(ExternalInterfaceError, match="no IPv6 default route"):
        find_external_interface(InterfaceChoice(needs_ipv4=False, needs_ipv6=True))
