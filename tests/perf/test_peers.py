"""Two kernel vxlan nodes speak to each other as two flannel nodes do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network

import pytest

from perf.peers import KernelVxlan, lease_name, lease_value, random_mac
from perf.topology import Pod, Topology
from perf.traffic import measure_tcp, ping

SUBNETS = [IPv4Network("172.17.10.0/24"), IPv4Network("172.17.11.0/24")]
SUBNETS_IPV6 = [IPv6Network("2001:db8:0:a::/64"), IPv6Network("2001:db8:0:b::/64")]


@pytest.fixture
def topology() -> Iterator[Topology]:
    with Topology(ipv6=True) as topology:
        yield topology


def connect(one: KernelVxlan, other: KernelVxlan) -> None:
    one.add_peer(other.subnet, other.public_ip, other.mac)
    other.add_peer(one.subnet, one.public_ip, one.mac)


def pods(topology: Topology, mtu_bytes: int) -> list[Pod]:
    return [
        host.add_pod(ipv4, ipv6, mtu_bytes=mtu_bytes)
        for host, ipv4, ipv6 in zip(topology.hosts, SUBNETS, SUBNETS_IPV6, strict=True)
    ]


@pytest.mark.netns
def test_pods_exchange_full_size_packets_and_tcp(topology: Topology) -> None:
    connect(*(KernelVxlan(h, s) for h, s in zip(topology.hosts, SUBNETS, strict=True)))
    near, far = pods(topology, mtu_bytes=1450)

    assert ping(near, far.address, packet_bytes=1450, dont_fragment=True).loss == 0
    assert measure_tcp(near, far).gbit_per_s > 0.1
    assert measure_tcp(near, far, reverse=True, streams=2).gbit_per_s > 0.1


@pytest.mark.netns
def test_ipv6_goes_over_the_ipv6_underlay(topology: Topology) -> None:
    connect(*(KernelVxlan(h, s) for h, s in zip(topology.hosts, SUBNETS_IPV6, strict=True)))
    near, far = pods(topology, mtu_bytes=1430)

    assert ping(near, far.addresses[1], packet_bytes=1430, dont_fragment=True).loss == 0


@pytest.mark.netns
def test_peer_that_changed_its_mac_is_reached_after_add_peer(topology: Topology) -> None:
    near, far = (KernelVxlan(h, s) for h, s in zip(topology.hosts, SUBNETS, strict=True))
    connect(near, far)
    near.add_peer(far.subnet, far.public_ip, random_mac())
    near_pod, far_pod = pods(topology, mtu_bytes=1450)
    assert ping(near_pod, far_pod.address, count=1, timeout_s=0.2).received == 0

    near.add_peer(far.subnet, far.public_ip, far.mac)

    assert ping(near_pod, far_pod.address, count=1).received == 1


@pytest.mark.netns
def test_vni_port_and_mac_are_the_device_s(topology: Topology) -> None:
    peer = KernelVxlan(topology.hosts[0], SUBNETS[0], vni=7, port=4789, mac="ee:2d:a9:5c:eb:08")

    shown = topology.hosts[0].run(["ip", "-d", "link", "show", "flannel.7"]).stdout

    assert peer.mtu_bytes == 1450
    for part in ("ee:2d:a9:5c:eb:08", "vxlan id 7 ", "dstport 4789", "nolearning", "mtu 1450"):
        assert part in shown


@pytest.mark.netns
def test_lease_is_written_as_flannel_writes_it(topology: Topology) -> None:
    ipv4 = KernelVxlan(topology.hosts[1], SUBNETS[1], mac="ee:2d:a9:5c:eb:08")
    ipv6 = KernelVxlan(topology.hosts[1], SUBNETS_IPV6[1], vni=7, mac="2e:1a:00:00:00:01")

    assert lease_name(SUBNETS[1]) == "172.17.11.0-24"
    assert lease_value(ipv4) == (
        '{"PublicIP":"192.168.77.11","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"ee:2d:a9:5c:eb:08"}}'
    )
    assert lease_value(ipv4, ipv6) == (
        '{"PublicIP":"192.168.77.11","PublicIPv6":"fd77::11","BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"ee:2d:a9:5c:eb:08"},'
        '"BackendV6Data":{"VNI":7,"VtepMAC":"2e:1a:00:00:00:01"}}'
    )


@pytest.mark.netns
def test_ipv6_peer_needs_an_ipv6_underlay() -> None:
    with (
        Topology(hosts=1) as topology,
        pytest.raises(ValueError, match=r"2001:db8:0:a::/64 needs a topology with ipv6=True"),
    ):
        KernelVxlan(topology.hosts[0], SUBNETS_IPV6[0])


def test_random_mac_is_unicast_and_local() -> None:
    for _ in range(100):
        mac = random_mac()
        assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", mac)
        assert int(mac[:2], 16) & 0b11 == 0b10
