"""Pods by the CNI project's plugins on loden nodes, dual-stack, behind firewalls that drop.

host0 ─ node 0 ─ cni0 ─ pods by `loden cni-conf` ────────────────┐
host1 ─ node 1 ─ cni0 ─ pods as by flannel's plugin's delegate ──┤ wire
host2 ─ etcd, and the outside ───────────────────────────────────┘
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from perf.nodes import LODEN, PACKAGES_DIR
from perf.topology import Host, Pod
from perf.traffic import ping
from tests.control.firewalls import source_seen
from tests.netns.cni import Runtime
from tests.netns.nodes import Cluster, LodenNode, cluster_of, wait_for
from tests.netns.streams import copy_by_tcp
from tests.reference.flannel_plugin import delegated_list

pytestmark = [pytest.mark.netns, pytest.mark.etcd, pytest.mark.cni]

CONFIG = {
    "Network": "10.5.0.0/16",
    "EnableIPv6": True,
    "IPv6Network": "2001:cafe:42::/56",
    "Backend": {"Type": "vxlan"},
}
FILE_BYTES = 4 << 20


@dataclass
class Site:
    cluster: Cluster
    runtimes: list[Runtime]
    pods: list[Pod]
    """One on each node."""

    @property
    def outside(self) -> Host:
        return self.cluster.etcd.host


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("cni")
    with cluster_of(2, directory, ipv6=True) as cluster:
        cluster.etcd.put("/config", json.dumps(CONFIG))
        for node in cluster.nodes:
            for tool in ("iptables", "ip6tables"):
                node.host.run([tool, "-P", "FORWARD", "DROP"])
            node.start("--ip-masq")
        for node in cluster.nodes:
            node.wait_ready()
        cluster.start(0, 1)
        ours, theirs = cluster.nodes
        flannels = delegated_list(theirs.subnet_file.read_text(), "cbr0")
        configs = (conflist_of(ours, directory), flannels)
        runtimes = [
            Runtime(node.host, config, directory / node.host.name)
            for node, config in zip(cluster.nodes, configs, strict=True)
        ]
        yield Site(cluster, runtimes, [runtime.add() for runtime in runtimes])


def conflist_of(node: LodenNode, directory: Path) -> dict[str, object]:
    """Written by the command, as an operator does."""
    path = directory / "10-loden.conflist"
    words = ["cni-conf", "-f", str(node.subnet_file), "-o", str(path)]
    node.host.run([*LODEN, *words], cwd=PACKAGES_DIR)
    config: dict[str, object] = json.loads(path.read_text())
    return config


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """The logs are shown when the test fails."""
    yield running
    print(running.cluster.logs())


@pytest.mark.parametrize("version", [0, 1], ids=["IPv4", "IPv6"])
def test_pods_on_different_hosts_ping_and_exchange_files(site: Site, version: int) -> None:
    data = os.urandom(FILE_BYTES)
    for source, sink in (site.pods, site.pods[::-1]):
        address = sink.addresses[version]
        mtu_bytes = site.cluster.nodes[0].status()["node"]["mtu_bytes"]
        answered = ping(source, address, packet_bytes=mtu_bytes, dont_fragment=True)
        assert answered.received == answered.sent
        assert copy_by_tcp(source, sink, address, data) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("version", [0, 1], ids=["IPv4", "IPv6"])
def test_pods_meet_as_themselves_and_the_outside_sees_their_node(site: Site, version: int) -> None:
    one, other = site.pods
    tcp = socket.SOCK_STREAM
    ours, theirs = one.addresses[version], other.addresses[version]
    assert source_seen(one, other, theirs, tcp) == str(ours)
    assert source_seen(other, one, ours, tcp) == str(theirs)
    for node, pod in zip(site.cluster.nodes, site.pods, strict=True):
        hosts = [(host.address, host.address_ipv6)[version] for host in (site.outside, node.host)]
        assert source_seen(pod, site.outside, hosts[0], tcp) == str(hosts[1])


def test_pods_on_one_host_have_addresses_of_their_own(site: Site) -> None:
    neighbour = site.runtimes[0].add()
    assert set(neighbour.addresses).isdisjoint(site.pods[0].addresses)
    assert ping(neighbour, site.pods[0].address).received > 0
    assert ping(site.pods[1], neighbour.address).received > 0


def test_host_port_leads_to_the_pod_until_it_is_deleted(site: Site) -> None:
    runtime = site.runtimes[0]
    pod = runtime.add({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"})
    with pod.entered():
        server = socket.create_server((str(pod.address), 80))
    with server:
        server.settimeout(5)
        with site.outside.entered():
            client = socket.create_connection((str(runtime.host.address), 8080), timeout=5)
        with client, server.accept()[0] as accepted:
            accepted.sendall(b"hello")
            assert client.recv(100) == b"hello"
    runtime.delete(pod)
    assert "eth0" not in pod.run(["ip", "-br", "link"]).stdout
    assert "8080" not in runtime.host.run(["iptables-save"]).stdout
    wait_for(lambda: ping(site.pods[1], pod.address, count=1).received == 0, "it is gone")
