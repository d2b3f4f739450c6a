"""`loden doctor` on real hosts: nothing to complain of where all is well, and each fault found."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.namespace import Namespace
from perf.nodes import LODEN, PACKAGES_DIR
from perf.topology import UNDERLAY_DEVICE, Host
from tests.netns.nodes import Cluster, LodenNode, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

Report = dict[str, list[str]]
"""What is wrong: by check, the levels, what was said, and how to mend it."""


def examine(host: Host, *words: str) -> tuple[Report, int]:
    """All but what is ok or cannot be known, and the exit status."""
    argv = [*LODEN, "doctor", "--json", "--iface", UNDERLAY_DEVICE, *words]
    done = host.run(argv, cwd=PACKAGES_DIR, check=False)
    assert done.stdout, done.stderr
    wrong: Report = {}
    for finding in json.loads(done.stdout):
        assert finding["says"]
        if finding["level"] in ("warning", "failure"):
            assert finding["mend"]
            told = "{level}: {says} | {mend}".format(**finding)
            wrong.setdefault(finding["check"], []).append(told)
    return wrong, done.returncode


def examine_node(node: LodenNode) -> tuple[Report, int]:
    """Beside a running node: it tells where etcd is."""
    return examine(node.host, "--run-dir", str(node.run_dir), "--state-dir", str(node.state_dir))


@pytest.fixture
def node(cluster: Cluster) -> LodenNode:
    """The first of two, both with a pod."""
    for one in cluster.nodes[:2]:
        one.pod()
    return cluster.nodes[0]


@pytest.fixture
def spare(cluster: Cluster, tmp_path: Path) -> list[str]:
    """What `loden doctor` is told on the host of the third node, which never ran."""
    folders = ["--run-dir", str(tmp_path), "--state-dir", str(tmp_path)]
    cluster.nodes[2].host.set_sysctl("net/ipv4/ip_forward", 1)
    return ["--etcd-endpoints", cluster.etcd.url, *folders]


@contextlib.contextmanager
def narrow_wire(cluster: Cluster, number: int) -> Iterator[None]:
    """The way to a host carries 1400 bytes, and nobody says so."""
    wire = Namespace(f"{cluster.topology.prefix}-wire")
    wire.ip(f"link set port{number} mtu 1400")
    try:
        yield
    finally:
        wire.ip(f"link set port{number} mtu 1500")


def test_healthy_node_has_no_complaint(node: LodenNode) -> None:
    """Also under a strict filter: each way leads back as it came."""
    node.host.set_sysctl("net/ipv4/conf/eth0/rp_filter", 1)
    try:
        assert examine_node(node) == ({}, 0)
    finally:
        node.host.set_sysctl("net/ipv4/conf/eth0/rp_filter", 0)


def test_host_that_is_ready_for_loden_has_no_complaint(cluster: Cluster, spare: list[str]) -> None:
    assert examine(cluster.nodes[2].host, *spare) == ({}, 0)


def test_kernel_that_does_not_bring_packets_to_pods_is_told(
    cluster: Cluster, node: LodenNode
) -> None:
    host, far = node.host, cluster.nodes[1]
    host.set_sysctl("net/ipv4/ip_forward", 0)
    try:
        wrong, status = examine_node(node)
        assert (status, wrong["forwarding"][0].split(":")[0]) == (1, "failure")
        assert "it is not forwarded: net.ipv4.ip_forward is 0" in wrong["pods' way in"][0]
    finally:
        host.set_sysctl("net/ipv4/ip_forward", 1)
    host.ip(f"route add {far.subnet} dev {UNDERLAY_DEVICE} proto 99")
    host.set_sysctl("net/ipv4/conf/loden0/rp_filter", 1)
    try:
        wrong, status = examine_node(node)
        assert status == 1
        assert f"to {far.subnet}: by eth0" in wrong["pods' way out"][0]
        assert "reverse-path filter (rp_filter)" in wrong["pods' way in"][0]
    finally:
        host.ip(f"route del {far.subnet} dev {UNDERLAY_DEVICE}")
        host.set_sysctl("net/ipv4/conf/loden0/rp_filter", 0)


def test_strict_filter_that_drops_what_a_node_sends_is_told(
    cluster: Cluster, node: LodenNode
) -> None:
    host, far = node.host, cluster.nodes[1]
    host.set_sysctl("net/ipv4/conf/eth0/rp_filter", 1)
    host.ip(f"route add {far.host.address}/32 dev docker0")
    try:
        assert "rp_filter" in examine_node(node)[0]["underlay"][0]
    finally:
        host.ip(f"route del {far.host.address}/32 dev docker0")
        host.set_sysctl("net/ipv4/conf/eth0/rp_filter", 0)


def test_firewall_in_the_way_is_named_and_its_effect_seen(
    cluster: Cluster, node: LodenNode
) -> None:
    host, far = node.host, cluster.nodes[1]
    host.run(["iptables", "-A", "INPUT", "-p", "udp", "--dport", "8472", "-j", "DROP"])
    try:
        wrong, status = examine_node(node)
    finally:
        host.run(["iptables", "-F", "INPUT"])
    assert status == 1
    assert (
        "tunnel packets of the other nodes are dropped by the chain ip filter INPUT"
        in (wrong["firewall"][0])
    )
    assert "answers pings, but nothing comes back" in wrong[f"node {far.host.address}"][0]


def test_way_that_is_too_narrow_is_measured(cluster: Cluster, node: LodenNode) -> None:
    far = cluster.nodes[1].host.address
    with narrow_wire(cluster, 1):
        (told,) = examine_node(node)[0][f"node {far}"]
        assert "carries packets of 1400 bytes, and full ones have 1500" in told
        assert told.startswith("failure")


def test_device_and_port_that_are_taken_are_told_before_loden_runs(
    cluster: Cluster, spare: list[str]
) -> None:
    host = cluster.nodes[2].host
    host.ip(
        "link add flannel.1 type vxlan id 1 dstport 8472 dev eth0 nolearning",
        "link set flannel.1 up",
        "link add loden0 type bridge",
        "address add 10.5.3.3/32 dev loden0",
    )
    try:
        wrong, status = examine(host, *spare)
    finally:
        host.ip("link del flannel.1", "link del loden0")
    told = " ".join(wrong["conflicts"])
    assert status == 1
    assert "the kernel's vxlan device flannel.1 is on UDP port 8472" in told
    assert "ip link delete flannel.1" in told
    assert "there is a device loden0 already" in told
    holder = host.popen(["socat", "-u", "UDP4-RECV:8472", "-"])
    try:
        wait_for(lambda: "socat" in str(examine(host, *spare)[0].get("conflicts")), "it listens")
    finally:
        holder.kill()
        holder.wait()


def test_etcd_that_is_down_is_a_failure_and_the_rest_is_looked_at(
    cluster: Cluster, node: LodenNode
) -> None:
    cluster.etcd.kill()
    try:
        wrong, status = examine_node(node)
    finally:
        cluster.etcd.start()
    assert status == 1
    assert wrong.keys() <= {"etcd", f"etcd {cluster.etcd.url}", "lease"}
    assert "packets flow on, changes are not seen" in wrong["etcd"][0]
    assert "Connection refused" in wrong[f"etcd {cluster.etcd.url}"][0]
