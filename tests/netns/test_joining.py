"""Nodes among others: beside flannel, in its place, moving pods, as the first node, over IPv6."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from perf.namespace import Namespace
from perf.nodes import LODEN, PACKAGES_DIR, init_network
from perf.peers import KernelVxlan, lease_name, lease_value
from perf.topology import Topology
from perf.traffic import measure_tcp, ping
from tests.netns.nodes import Cluster, LodenNode, cluster_of, reaches, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd]


def test_flannel_node_and_loden_node_reach_each_other(cluster: Cluster) -> None:
    node, host = cluster.nodes[0], cluster.etcd.host
    subnet = IPv4Network("10.5.200.0/24")
    flannel = KernelVxlan(host, subnet)
    key = f"/subnets/{lease_name(subnet)}"
    cluster.etcd.put(key, lease_value(flannel))
    try:
        wait_for(lambda: str(subnet) in node.routes(), "a route to the flannel node")
        flannel.add_peer(IPv4Network(node.subnet), node.host.address, node.mac)
        there, here = host.add_pod(subnet, mtu_bytes=flannel.mtu_bytes), node.pod()
        for source, destination in ((here, there), (there, here)):
            answered = ping(
                source, destination.address, count=3, packet_bytes=1450, dont_fragment=True
            )
            assert answered.received == 3
            assert measure_tcp(source, destination).gbit_per_s > 0.5
    finally:
        cluster.etcd.delete(key)
        host.ip(f"link del {flannel.device}")
    wait_for(lambda: str(subnet) not in node.routes(), "the route is gone with the lease")


def test_flanneld_flags_and_environment_work(cluster: Cluster) -> None:
    node = cluster.nodes[2]
    if node.is_running():
        node.stop()
    environment = {
        "FLANNELD_ETCD_ENDPOINTS": cluster.etcd.url,
        "FLANNELD_PUBLIC_IP": "192.168.77.99",  # the command line wins
        "FLANNELD_IP_MASQ": "false",
        "FLANNELD_SUBNET_FILE": str(node.subnet_file),
        "FLANNELD_STATE_DIR": str(node.state_dir),
        "FLANNELD_HEALTHZ_PORT": "8471",
    }
    words = ["-iface=eth0", "-ip-masq=true", "-public-ip", str(node.host.address)]
    node.launch(["run", *words, "--run-dir", str(node.run_dir)], environment)
    try:
        node.wait_ready()
        assert node.status()["node"]["public_ip"] == str(node.host.address)
        assert "FLANNEL_IPMASQ=true" in node.subnet_file.read_text()
        assert "masquerade" in node.host.run(["nft", "list", "ruleset"]).stdout
        assert get(node.host, 8471, "/healthz").startswith("HTTP/1.0 200")
        assert get(node.host, 8471, "/readyz").startswith("HTTP/1.0 200")
    finally:
        assert node.stop() == 0
    assert node.host.run(["nft", "list", "ruleset"]).stdout == ""


def get(host: Namespace, port: int, path: str) -> str:
    """An HTTP answer, status line and all."""
    request = f"printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | socat -t 5 - TCP:127.0.0.1:{port}"
    return host.run(["sh", "-c", request]).stdout


def test_pod_address_moves_from_one_node_to_another(cluster: Cluster) -> None:
    cluster.start(2)
    first, second, third = cluster.nodes
    watcher, old, new = third.pod(), first.pod(), second.pod()
    moved = f"{IPv4Network(first.subnet)[77]}"
    key = f"/routes/{moved}-32"
    own_route = f"route add {moved}/32 via {new.address}"
    old.ip(f"address add {moved}/32 dev eth0")
    try:
        assert answers(watcher, moved)
        old.ip(f"address del {moved}/32 dev eth0")
        new.ip(f"address add {moved}/32 dev eth0")
        second.host.ip(own_route)
        cluster.etcd.put(key, lease_of(cluster, second))
        wait_for(lambda: third.routes().get(f"{moved}/32") == str(second.host.address), "a route")
        wait_for(lambda: second.routes().get(f"{moved}/32") == "local", "its new node knows it")
        assert answers(watcher, moved)
        wait_for(lambda: moved in first.host.run(["ip", "route"]).stdout, "the old host's route")
        assert answers(first.host, moved)
    finally:
        cluster.etcd.delete(key)
        second.host.ip(own_route.replace("add", "del", 1))
    wait_for(lambda: f"{moved}/32" not in third.routes(), "the route is gone with its key")


def answers(source: Namespace, address: str) -> bool:
    done = source.run(["ping", "-c", "1", "-W", "1", address], check=False)
    return done.returncode == 0


def lease_of(cluster: Cluster, node: LodenNode) -> str:
    """The value of a node's lease."""
    value = cluster.etcd.get("/subnets/" + node.subnet.replace("/", "-"))
    assert value is not None
    return value


def test_first_node_needs_nothing_but_its_embedded_etcd(tmp_path: Path) -> None:
    with Topology(2) as topology:
        first, second = topology.hosts
        url = f"http://{first.address}:2379"
        nodes = [
            LodenNode(first, tmp_path / "first", "http://127.0.0.1:1"),  # overruled by the flag
            LodenNode(second, tmp_path / "second", url),
        ]
        nodes[0].start("--embedded-etcd", "--embedded-etcd-listen", str(first.address))
        wait_for(lambda: "no network config" in nodes[0].log(), "it asks for a config", 30)
        init_network(first, "http://127.0.0.1:2379", "10.5.0.0/16")
        nodes[1].start()
        for node in nodes:
            node.wait_ready()
        wait_for(lambda: reaches(nodes[0].pod(), nodes[1].pod()), "they reach each other")
        assert (nodes[0].state_dir / "etcd").is_dir()
        assert nodes[1].stop() == 0
        etcd = [pid for pid in nodes[0].pids() if Path(f"/proc/{pid}/comm").read_text() == "etcd\n"]
        assert len(etcd) == 1
        assert nodes[0].stop() == 0
        assert not Path(f"/proc/{etcd[0]}").exists()


@pytest.mark.parametrize("enable_ipv4", [True, False], ids=["dual stack", "IPv6 only"])
def test_ipv6_pods_reach_each_other(tmp_path: Path, enable_ipv4: bool) -> None:
    config: dict[str, Any] = {
        "EnableIPv4": enable_ipv4,
        "Network": "10.5.0.0/16",
        "EnableIPv6": True,
        "IPv6Network": "2001:cafe:42::/56",
        "Backend": {"Type": "vxlan"},
    }
    with cluster_of(2, tmp_path, ipv6=True) as cluster:
        cluster.etcd.put("/config", json.dumps(config))
        cluster.start(0, 1)
        source, destination = (node.pod() for node in cluster.nodes)
        assert len(destination.addresses) == 1 + enable_ipv4
        for address in destination.addresses:
            answered = ping(source, address, packet_bytes=1430, dont_fragment=True)
            assert answered.received == answered.sent
            assert measure_tcp(source, destination, address=address).gbit_per_s > 0.2
        print(cluster.logs())


def test_status_and_routes_are_shown_to_people_and_programs(cluster: Cluster) -> None:
    first, second = cluster.nodes[:2]
    where = ["--run-dir", str(first.run_dir)]
    shown = first.host.run([*LODEN, "status", *where], cwd=PACKAGES_DIR).stdout
    for word in (first.subnet, first.mac, str(first.host.address), "in sync", "held", "CPU 0"):
        assert word in shown
    routes = first.host.run([*LODEN, "routes", *where], cwd=PACKAGES_DIR).stdout
    for word in (first.subnet, "local", second.subnet, str(second.host.address), second.mac):
        assert word in routes
    assert first.ask("status")["subnet"] == first.subnet
    assert {row["prefix"] for row in first.ask("routes")} >= {first.subnet, second.subnet}


def test_control_without_forwarder_says_what_is_missing(cluster: Cluster) -> None:
    node = cluster.nodes[2]
    if node.is_running():
        node.stop()
    node.launch(["control", *node.run_words()[1:]])
    try:
        missing = f"no forwarder is running in {node.run_dir} (see --run-dir)"
        wait_for(lambda: missing in node.status().get("not_ready_because", []), "it is told", 20)
        assert node.is_running()
        assert not node.is_ready()
    finally:
        assert node.stop() == 0
