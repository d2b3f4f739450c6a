"""Which routes of the RIB the kernel must know too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_network

import pytest

from control.etcd_config import EtcdConfig
from control.host_keeper import HostKeeper
from control.host_state import IPNetwork
from control.lease import NodeSubnet
from control.options import ControlOptions
from control.rib import Kind, Route
from perf.topology import Host, Topology
from tests.control.nodes import CONFIG
from tests.netns.nodes import wait_for

pytestmark = pytest.mark.netns

SUBNET = NodeSubnet(IPv4Network("10.7.1.0/24"))
ON_LINK = IPv4Address("192.168.77.99")
FAR_AWAY = IPv4Address("198.51.100.1")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """With eth0 on 192.168.77.0/24 and a default route."""
    with Topology(1) as topology:
        yield topology.hosts[0]


@pytest.fixture
def keeper(host: Host, request: pytest.FixtureRequest) -> Iterator[HostKeeper]:
    """Under the config that the test is parametrized with."""
    config = getattr(request, "param", CONFIG)
    with host.entered():
        keeper = HostKeeper(ControlOptions(EtcdConfig(), device="loden0"), config, SUBNET)
        yield keeper
        keeper.leave()
        keeper.close()


@pytest.fixture
def device(host: Host) -> Iterator[str]:
    """Stands in for the forwarder's."""
    host.ip("link add loden0 type veth peer name other0")
    yield "loden0"
    host.ip("link del loden0")


def route(prefix: str, kind: Kind = Kind.REMOTE, address: IPv4Address = FAR_AWAY) -> Route:
    return Route(ip_network(prefix), kind, address, "0e:00:00:00:00:09", 1, f"/key/{prefix}")


def follow(keeper: HostKeeper, *routes: Route) -> bool:
    changed: dict[IPNetwork, Route | None] = {route.prefix: route for route in routes}
    return keeper.follow_routes(changed)


def kernel_routes(host: Host) -> set[str]:
    """Destinations of our protocol; the network's own among them."""
    said = host.run(["ip", "route", "show", "proto", "76"]).stdout
    return {line.split()[0] for line in said.splitlines()}


def firewall(host: Host) -> str:
    return host.run(["nft", "list", "ruleset"]).stdout


def test_nodes_subnets_need_no_more_than_the_networks_route(
    keeper: HostKeeper, host: Host, device: str
) -> None:
    assert not follow(keeper, route("10.7.2.0/24"), route("10.7.1.0/24", Kind.LOCAL))
    keeper.reconcile(1450)
    assert kernel_routes(host) == {"10.7.0.0/16"}
    assert keeper.error is None


def test_moved_pod_and_foreign_range_get_routes_and_lose_them(
    keeper: HostKeeper, host: Host, device: str
) -> None:
    assert follow(keeper, route("10.7.1.9/32"), route("10.99.0.0/24"))
    keeper.reconcile(1450)
    assert kernel_routes(host) == {"10.7.0.0/16", "10.7.1.9", "10.99.0.0/24"}
    assert keeper.follow_routes({ip_network("10.7.1.9/32"): None})
    keeper.reconcile(1450)
    assert kernel_routes(host) == {"10.7.0.0/16", "10.99.0.0/24"}


def test_what_is_local_is_never_sent_into_the_device(keeper: HostKeeper) -> None:
    assert not follow(keeper, route("10.99.0.0/24", Kind.LOCAL))
    assert follow(keeper, route("10.99.0.0/24"))
    assert follow(keeper, route("10.99.0.0/24", Kind.LOCAL))


@pytest.mark.parametrize("keeper", [replace(CONFIG, direct_routing=True)], indirect=True)
def test_direct_routing_routes_only_who_is_on_the_link(
    keeper: HostKeeper, host: Host, device: str
) -> None:
    assert follow(keeper, route("10.7.2.0/24", address=ON_LINK), route("10.7.3.0/24"))
    keeper.reconcile(1450)
    assert kernel_routes(host) == {"10.7.0.0/16", "10.7.2.0/24"}
    keeper.leave()
    assert kernel_routes(host) == set()


def test_pod_that_moved_here_is_masqueraded_as_ours(host: Host, device: str) -> None:
    options = ControlOptions(EtcdConfig(), device="loden0", ip_masq=True)
    with host.entered():
        keeper = HostKeeper(options, CONFIG, SUBNET)
        assert follow(keeper, route("10.7.2.9/32", Kind.LOCAL))
        keeper.reconcile(1450)
        assert "{ 10.7.1.0/24, 10.7.2.9 }" in firewall(host)
        assert keeper.follow_routes({ip_network("10.7.2.9/32"): None})
        keeper.reconcile(1450)
        assert "10.7.2.9" not in firewall(host)
        keeper.leave()
        keeper.close()


def test_forwarding_is_accepted_with_and_without_masquerading(
    keeper: HostKeeper, host: Host, device: str
) -> None:
    keeper.reconcile(1450)
    assert "ip daddr 10.7.0.0/16 accept" in firewall(host)
    assert "masquerade" not in firewall(host)
    host.run(["nft", "flush", "ruleset"])
    keeper.note_firewall_change()

    def are_back() -> bool:
        keeper.reconcile(1450)
        return "ip daddr 10.7.0.0/16 accept" in firewall(host)

    wait_for(are_back, "the rules are back")
    keeper.leave()
    assert firewall(host) == ""


def test_rules_that_are_no_longer_wanted_go(keeper: HostKeeper, host: Host, device: str) -> None:
    host.run(["iptables", "-P", "FORWARD", "DROP"])
    keeper.reconcile(1450)
    assert "loden-loden0" in host.run(["iptables-save"]).stdout
    without = ControlOptions(EtcdConfig(), device="loden0", forward_rules=False)
    with host.entered():
        successor = HostKeeper(without, CONFIG, SUBNET)
        successor.reconcile(1450)
        successor.close()
    assert "loden" not in firewall(host)
    host.run(["nft", "flush", "ruleset"])


def test_missing_device_is_said_once(keeper: HostKeeper, caplog: pytest.LogCaptureFixture) -> None:
    keeper.reconcile(1450)
    keeper.reconcile(1450)
    assert keeper.error is not None
    assert "is the forwarder running?" in keeper.error
    assert len(caplog.records) == 1


def test_route_of_another_program_is_told_and_left(
    keeper: HostKeeper, host: Host, device: str
) -> None:
    host.ip("route add 10.7.0.0/16 via 192.168.77.1")
    try:
        keeper.reconcile(1450)
        assert keeper.error is not None
        assert "another program has a route there" in keeper.error
        assert "10.7.0.0/16 via 192.168.77.1" in host.run(["ip", "route"]).stdout
    finally:
        host.ip("route del 10.7.0.0/16 via 192.168.77.1")
    keeper.reconcile(1450)
    assert keeper.error is None


def test_route_that_covers_a_vtep_is_kept_from_the_kernel(
    host: Host, keeper: HostKeeper, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    everything, its_network, harmless = "0.0.0.0/0", "198.51.100.0/24", "203.0.113.0/24"
    follow(keeper, route("10.7.2.0/24"), *map(route, (everything, its_network, harmless)))
    for _ in range(2):
        keeper.reconcile(1450)
    assert keeper.error is None
    routes = host.run(["ip", "route", "show", "dev", device]).stdout
    assert harmless in routes
    assert its_network not in routes
    assert "default" not in routes
    assert caplog.text.count("covers a node's own address") == 2  # each prefix once
