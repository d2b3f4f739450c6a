"""A way that carries less than the underlay's interfaces promise, and what pods are told of it.

host0 ──┐                       host2 is a router between the other two: the way back and
        ├── host2, MTU 1400     forth leads through it, and it sends on at most 1400 bytes
host1 ──┘
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.namespace import Namespace
from perf.traffic import PingResult, ping
from tests.netns.forwarders import Pair, pair_of_forwarders
from tests.netns.nodes import wait_for
from tests.netns.streams import copy_by_tcp

pytestmark = pytest.mark.netns

NARROW = 1400


@pytest.fixture(params=[4, 6])
def routed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """The underlay is IPv4 or IPv6."""
    version = request.param
    with pair_of_forwarders(tmp_path, hosts=3, ipv6_underlay=version == 6) as pair:
        *hosts, router = pair.hosts
        for setting in ("all", "eth0"):
            router.set_sysctl(f"net/ipv4/conf/{setting}/send_redirects", 0)
        for host in hosts:
            host.set_sysctl(f"net/ipv{version}/conf/eth0/accept_redirects", 0)
        ends = [str(end.underlay) for end in pair.ends]
        middle = str(router.address if version == 4 else router.address_ipv6)
        for end in ends:
            router.ip(f"route add {end} dev eth0 mtu lock {NARROW}")
        for host, far in zip(hosts, ends[::-1], strict=True):
            host.ip(f"route add {far} via {middle} dev eth0")
        yield pair


def test_pods_are_told_what_the_way_carries(routed: Pair) -> None:
    near, far = routed.ends
    outer = near.underlay.version
    limit = NARROW - (50 if outer == 4 else 70)
    if outer == 4:
        # With DF clear the router cuts our datagrams and says nothing, as it does to flannel's.
        assert full_size_ping(routed, 4).received == 3
        learn_from_other_traffic(near.host, str(far.underlay))
    else:
        full_size_ping(routed, 4)  # no IPv6 router cuts: it answers
    told = {str(far.underlay): limit}
    wait_for(lambda: near.client.stats()["path_mtus"] == told, f"the limit {limit}")

    for version in (4, 6):
        assert told_by_ping(near.pod, routed, version) == limit
        before, too_big = fragments_made(near.host), near.drops().get("too_big", 0)
        data = os.urandom(3_000_000)
        address = routed.address_of(1, version)
        assert copy_by_tcp(near.pod, far.pod, address, data) == hashlib.sha256(data).hexdigest()
        assert fragments_made(near.host) == before
        assert near.drops().get("too_big", 0) - too_big < 20  # told once, it sends smaller ones


def full_size_ping(pair: Pair, version: int) -> PingResult:
    address = pair.address_of(1, version)
    return ping(pair.ends[0].pod, address, packet_bytes=1450, dont_fragment=True)


def learn_from_other_traffic(host: Namespace, far: str) -> None:
    """The kernel keeps what any packet of the host was told."""
    said = host.run(["ping", "-c", "2", "-i", "0.2", "-M", "do", "-s", "1472", far], check=False)
    assert f"mtu = {NARROW}" in said.stdout, said.stdout + said.stderr


def told_by_ping(pod: Namespace, pair: Pair, version: int) -> int:
    """The MTU that ping reports to have been told: it sends what fits the pod's interface."""
    address = str(pair.address_of(1, version))
    size = 1450 - (28 if version == 4 else 48)
    argv = ["ping", "-c", "2", "-i", "0.2", "-M", "do", "-s", str(size), address]
    said = pod.run(argv, check=False)
    found = re.search(r"mtu ?= ?(\d+)", said.stdout + said.stderr)
    assert found, said.stdout + said.stderr
    return int(found[1])


def fragments_made(host: Namespace) -> int:
    """By the kernel of a host, of packets of both IP versions."""
    ipv4 = host.run(["cat", "/proc/net/snmp"]).stdout
    names, values = (line.split() for line in ipv4.splitlines() if line.startswith("Ip:"))
    ipv6 = host.run(["cat", "/proc/net/snmp6"]).stdout
    found = re.search(r"Ip6FragCreates\s+(\d+)", ipv6)
    assert found
    return int(values[names.index("FragCreates")]) + int(found[1])
