"""The tunnel-GSO path on nodes: taken where interface and firewall allow it."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf.traffic import measure_tcp, ping
from tests.netns.nodes import Cluster, LodenNode, cluster_of, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd]


def path_of(node: LodenNode) -> str:
    """What the node says of the path, once it has decided."""

    def decided() -> str | None:
        state = str(node.status()["offloads"]["tunnel_gso"])
        return None if state == "not tried yet" else state

    return wait_for(decided, "the tunnel-GSO path is tried")


def talk(cluster: Cluster) -> int:
    """TCP and full-size pings from the first to the second node; superpackets that left whole."""
    here, there = (node.pod() for node in cluster.nodes[:2])
    assert measure_tcp(here, there, seconds=1).gbit_per_s > 0.2
    answered = ping(here, there.address, count=3, packet_bytes=1450, dont_fragment=True)
    assert answered.received == 3
    return int(cluster.nodes[0].status()["totals"]["out_whole"])


def test_superpackets_leave_whole_where_the_interface_segments_tunnels(cluster: Cluster) -> None:
    assert [path_of(node) for node in cluster.nodes[:2]] == ["on", "on"]
    assert talk(cluster) > 0


def test_interface_that_cannot_segment_tunnels_keeps_the_udp_path(tmp_path: Path) -> None:
    with cluster_of(2, tmp_path, plain_nic=True) as cluster:
        cluster.init()
        cluster.start(0, 1)
        assert "tx-udp_tnl-segmentation is off" in path_of(cluster.nodes[0])
        assert talk(cluster) == 0


def test_firewall_that_forwards_nothing_from_the_tap_keeps_the_udp_path(tmp_path: Path) -> None:
    with cluster_of(2, tmp_path) as cluster:
        cluster.init()
        for node in cluster.nodes:
            rule = 'iifname "loden0-gso" drop'
            chain = f"chain forward {{ type filter hook forward priority 0; {rule}; }};"
            node.host.run(["nft", f"table inet strict {{ {chain} }}"])
        cluster.start(0, 1)
        assert "did not leave by eth0" in path_of(cluster.nodes[0])
        assert talk(cluster) == 0


def test_firewall_that_comes_later_is_noticed(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    assert path_of(node) == "on"
    chain = 'chain forward { type filter hook forward priority 0; iifname "loden0-gso" drop; };'
    node.host.run(["nft", f"table inet strict {{ {chain} }}"])
    wait_for(lambda: "did not leave by eth0" in path_of(node), "the path is given up")
    talk(cluster)
    node.host.run(["nft", "delete", "table", "inet", "strict"])
    wait_for(lambda: path_of(node) == "on", "the path is taken again")


def test_superpackets_pass_a_firewall_of_iptables(cluster: Cluster) -> None:
    nodes = cluster.nodes[:2]
    for node in nodes:
        node.host.run(["iptables", "-P", "FORWARD", "DROP"])
    try:
        wait_for(lambda: all("-i loden0-gso" in rules(node) for node in nodes), "our rules")
        before = int(nodes[0].status()["totals"]["out_whole"])
        assert talk(cluster) > before
    finally:
        for node in nodes:
            node.host.run(["iptables", "-P", "FORWARD", "ACCEPT"])
    wait_for(lambda: not any(rules(node) for node in nodes), "rules that are needed no more go")


def rules(node: LodenNode) -> str:
    said = node.host.run(["iptables", "-S", "FORWARD"]).stdout
    return "\n".join(line for line in said.splitlines() if "loden" in line)
