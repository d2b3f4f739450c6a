"""The kernel's decision, asked in a host that has a bridge with a pod."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from control.kernel_route import Decision, decide
from perf.topology import Host, Topology

pytestmark = pytest.mark.netns

POD = {4: "10.5.1.2", 6: "fd05::2"}
OTHER = {4: "192.168.77.11", 6: "fd77::11"}
FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Topology(2, ipv6=True) as topology:
        topology.hosts[0].add_pod("10.5.1.0/24", "fd05::/64", mtu_bytes=1450)
        yield topology.hosts[0]


def ask(host: Host, to: str, source: str | None = None, by: str | None = None) -> Decision:
    with host.entered():
        return decide(ip_address(to), ip_address(source) if source else None, by)


def test_own_packets_leave_by_the_route_of_their_destination(host: Host) -> None:
    host.ip("route add 10.9.0.0/16 via 192.168.77.11", "route add prohibit 10.8.0.0/16")
    assert ask(host, "192.168.77.11") == Decision(device="eth0")
    assert ask(host, "fd77::11") == Decision(device="eth0")
    assert ask(host, "10.9.1.1") == Decision(device="eth0", gateway="192.168.77.11")
    assert str(ask(host, "10.9.1.1")) == "by eth0 via 192.168.77.11"
    assert ask(host, "10.5.1.77") == Decision(device="docker0")
    assert ask(host, str(host.address)) == Decision(is_local=True)
    assert ask(host, "10.8.0.1").refusal == "a route of this host prohibits it"


@pytest.mark.parametrize("version", [4, 6])
def test_pods_packets_pass_only_where_forwarding_is_on(host: Host, version: int) -> None:
    for value, device in ((1, "eth0"), (0, None), (1, "eth0")):
        host.set_sysctl(FORWARDING[version], value)
        decision = ask(host, OTHER[version], POD[version], "docker0")
        assert decision.device == device
        if device is None:
            assert "not forwarded" in str(decision)


def test_reverse_path_filter_is_told(host: Host) -> None:
    stranger = "192.168.77.200"
    assert ask(host, OTHER[4], stranger, "docker0").device == "eth0"
    host.set_sysctl("net/ipv4/conf/docker0/rp_filter", 1)
    assert "rp_filter" in str(ask(host, OTHER[4], stranger, "docker0"))


def test_device_that_is_not_there_is_told(host: Host) -> None:
    assert str(ask(host, OTHER[4], POD[4], "docker9")) == "there is no device docker9"
