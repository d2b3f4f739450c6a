"""A kernel vxlan peer, and a forwarder that does without one offload after the other."""

from __future__ import annotations

import hashlib
from collections import Counter
from ipaddress import IPv4Network
from pathlib import Path
from random import Random

import pytest

from forwarder.fib.routes import IPAddress, NextHop, Prefix, RemoteVtep
from forwarder.wire.vxlan import format_mac, parse_mac
from perf.namespace import Namespace
from perf.peers import KernelVxlan
from perf.topology import Topology
from perf.traffic import ping
from tests.netns.forwarders import PORT, VNI, Forwarder
from tests.netns.nodes import wait_for
from tests.netns.streams import copy_by_tcp, copy_by_udp

pytestmark = pytest.mark.netns

SWITCHES = ["--no-tso", "--no-uso", "--no-coalesce", "--no-udp-gso", "--no-udp-gro"]


class Site:
    """A forwarder on one host, the kernel's vxlan on the other, as a veth has it.

    It leaves the kernel's superpackets whole and their checksums partial.
    """

    def __init__(self, topology: Topology, directory: Path, udp_checksum: bool = True) -> None:
        ours, theirs = topology.hosts
        self.end = Forwarder(ours, 0, directory, ipv6_underlay=False)
        subnet = IPv4Network("10.7.1.0/24")
        kernel = KernelVxlan(theirs, subnet, vni=VNI, port=PORT, udp_checksum=udp_checksum)
        kernel.add_peer(self.end.subnets[0], ours.address, format_mac(self.end.mac))
        self.pod = theirs.add_pod(subnet, mtu_bytes=1450)
        hop = RemoteVtep(theirs.address, parse_mac(kernel.mac), VNI, PORT)
        self.routes: dict[Prefix, NextHop] = {Prefix.of(subnet): hop}

    def exchange(self, *options: str) -> None:
        """Starts a forwarder, moves bytes both ways, ends it."""
        end, pod = self.end, self.pod
        end.start(*options)
        end.configure(self.routes)
        wait_for(lambda: ping(end.pod, pod.address, count=1, timeout_s=1).received, "a ping")
        for source, sink in ((end.pod, pod), (pod, end.pod)):
            assert_arrives(source, sink, sink.address)
        states = end.client.stats()["offloads"].values()
        assert ("switched off" in states) == bool(options)
        assert end.stop() == 0


def test_bytes_arrive_both_ways_without_any_one_offload(tmp_path: Path) -> None:
    with Topology(2, ipv6=True) as topology:
        site = Site(topology, tmp_path)
        for switch in SWITCHES:
            site.exchange(switch)


def test_outer_checksums_may_be_zero(tmp_path: Path) -> None:
    with Topology(2, ipv6=True) as topology:
        Site(topology, tmp_path, udp_checksum=False).exchange()


def assert_arrives(source: Namespace, sink: Namespace, address: IPAddress) -> None:
    random = Random(str(address))
    data = random.randbytes(5_000_000)
    assert copy_by_tcp(source, sink, address, data) == hashlib.sha256(data).hexdigest()
    sizes = [0, 1, 1422, 1423, *(random.randrange(65_000) for _ in range(12))]
    datagrams = [random.randbytes(size) for size in sizes]
    assert Counter(copy_by_udp(source, sink, address, datagrams)) == Counter(datagrams)
