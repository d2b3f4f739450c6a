"""Whole nodes on real parts: two, three of them, and whatever may happen to them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from perf.topology import UNDERLAY_NETWORK, Pod
from perf.traffic import measure_tcp, ping
from tests.netns.nodes import Cluster, LodenNode, SteadyPing, reaches, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd]


def test_nodes_started_together_get_different_subnets_and_reach_each_other(
    cluster: Cluster,
) -> None:
    first, second = cluster.nodes[:2]
    assert first.subnet != second.subnet
    assert cluster.etcd.leases() == {
        str(node.host.address): node.subnet for node in (first, second)
    }
    for source, destination in ((first, second), (second, first)):
        answered = ping(
            source.pod(),
            destination.pod().address,
            count=3,
            packet_bytes=1450,
            dont_fragment=True,
        )
        assert answered.received == 3
    assert measure_tcp(first.pod(), second.pod()).gbit_per_s > 1


def test_third_node_is_routed_everywhere_within_a_second_of_its_lease(cluster: Cluster) -> None:
    first, second, third = cluster.nodes
    third.start()
    address = str(third.host.address)
    lease = wait_for(lambda: cluster.etcd.leases().get(address), "a third lease", 240)
    appeared = time.monotonic()
    wait_for(
        lambda: all(node.routes().get(lease) == address for node in (first, second)),
        "routes to the third node",
        timeout_s=1.0,
    )
    print(f"routes {time.monotonic() - appeared:.3f} s after the lease")
    third.wait_ready()
    assert third.routes().keys() == {first.subnet, second.subnet, third.subnet}
    assert reaches(first.pod(), third.pod())
    assert reaches(third.pod(), second.pod())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_node_leaves_its_lease_and_nothing_else(
    cluster: Cluster, number: signal.Signals
) -> None:
    node = cluster.nodes[2]
    cluster.start(2)
    before, mac, pids = node.subnet, node.mac, node.pids()
    begun = time.monotonic()
    assert node.stop(number) == 0
    assert time.monotonic() - begun < 5
    assert cluster.etcd.leases()[str(node.host.address)] == before
    assert f"FLANNEL_SUBNET={before.replace('.0/', '.1/')}" in node.subnet_file.read_text()
    assert "loden0" not in node.host.run(["ip", "-br", "link"]).stdout
    assert node.host.run(["ip", "route", "show", "proto", "76"]).stdout == ""
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert list(node.run_dir.iterdir()) == []
    cluster.start(2)
    assert (node.subnet, node.mac) == (before, mac)


def test_node_that_lost_power_keeps_subnet_and_mac(cluster: Cluster) -> None:
    node = cluster.nodes[2]
    cluster.start(2)
    before, mac = node.subnet, node.mac
    node.kill_everything()
    cluster.start(2)
    assert (node.subnet, node.mac) == (before, mac)
    assert reaches(node.pod(), cluster.nodes[0].pod())


# ---- parts of a node that die -------------------------------------------------------------------


def test_control_killed_comes_back_and_no_packet_is_lost(cluster: Cluster) -> None:
    first, second = cluster.nodes[:2]
    killed, peer = first.pid_of("control"), second.pod().address
    with SteadyPing(first.pod(), peer) as steady:
        first.kill("control")
        wait_for(lambda: first.pid_of("control") not in (0, killed) and first.is_ready(), "control")
        time.sleep(0.6)  # pings after the new one has moved the workers to its own FIB
    assert steady.lost == 0
    assert steady.sent > 50


def test_forwarder_killed_is_back_within_two_seconds_with_all_routes(cluster: Cluster) -> None:
    first, second = cluster.nodes[:2]
    pods, routes = (first.pod(), second.pod()), first.routes()
    took_s: list[float] = []
    while not took_s or took_s[-1] >= 2:
        assert len(took_s) < 3, f"each time too late: {took_s}"  # others may use this machine too
        took_s.append(seconds_without_forwarder(first, pods))
    assert first.routes() == routes
    assert wait_for(first.is_ready, "ready again")


def seconds_without_forwarder(node: LodenNode, pods: tuple[Pod, Pod]) -> float:
    """From its death until a ping is answered again."""
    killed, killed_at = node.pid_of("forwarder"), time.monotonic()
    node.kill("forwarder")
    wait_for(lambda: node.pid_of("forwarder") not in (0, killed), "another forwarder")
    wait_for(lambda: reaches(*pods), "the ping is answered again")
    return time.monotonic() - killed_at


def test_worker_killed_is_replaced_at_once(cluster: Cluster) -> None:
    first, second = cluster.nodes[:2]
    pods, killed = (first.pod(), second.pod()), first.worker_pids()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: reaches(*pods), "the ping is answered again", timeout_s=1)
    assert not set(killed) & set(first.worker_pids())
    assert len(first.worker_pids()) == len(killed)


def test_nothing_outlives_run(cluster: Cluster) -> None:
    node = cluster.nodes[2]
    cluster.start(2)
    pids = node.pids()
    node.stop(signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "its children end")
    assert "loden0" not in node.host.run(["ip", "-br", "link"]).stdout
    assert node.host.run(["ip", "route", "show", "proto", "76"]).stdout == ""


def test_run_killed_can_be_started_again_at_once(cluster: Cluster) -> None:
    node = cluster.nodes[2]
    cluster.start(2)
    node.stop(signal.SIGKILL)
    cluster.start(2)
    assert reaches(node.pod(), cluster.nodes[0].pod())


# ---- the host -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "harm",
    [
        "address flush dev loden0",
        "link set loden0 down",
        "route flush proto 76",
        "link set loden0 mtu 1300",
    ],
)
def test_what_something_else_took_away_is_put_back(cluster: Cluster, harm: str) -> None:
    first, second = cluster.nodes[:2]
    pods = (first.pod(), second.pod())
    first.host.ip(harm)
    wait_for(
        lambda: ping(pods[0], pods[1].address, count=1, timeout_s=0.2, packet_bytes=1450).received,
        "a full-size ping is answered again",
        timeout_s=3,
    )
    assert f"{first.subnet.replace('/24', '/32')}" in first.host.run(["ip", "addr"]).stdout


# ---- etcd ---------------------------------------------------------------------------------------


def test_etcd_gone_for_ten_seconds_loses_no_packet(cluster: Cluster) -> None:
    first, second = cluster.nodes[:2]
    log_before = len(first.log())
    with SteadyPing(first.pod(), second.pod().address) as steady:
        cluster.etcd.kill()
        wait_for(lambda: first.status()["etcd"]["state"] == "disconnected", "it is noticed")
        time.sleep(10)  # the outage itself
        assert first.is_ready()
        cluster.etcd.start()
        wait_for(lambda: first.status()["etcd"]["state"] == "in_sync", "in sync again", 15)
    assert steady.lost == 0
    assert len(first.log()[log_before:].splitlines()) < 10, first.log()[log_before:]


def test_node_that_boots_while_etcd_is_down_forwards_on_its_saved_state(cluster: Cluster) -> None:
    first, _, third = cluster.nodes
    cluster.start(2)
    pods = (third.pod(), first.pod())
    subnet, routes = third.subnet, third.routes()
    wait_for(lambda: third.state_holds(routes), "the routes are on disk")
    cluster.etcd.kill()
    try:
        third.kill_everything()
        third.start()
        third.wait_ready()
        assert third.status()["routes"]["from_saved_state"]
        assert (third.subnet, third.routes()) == (subnet, routes)
        assert reaches(*pods)
    finally:
        cluster.etcd.start()
    wait_for(lambda: not third.status()["routes"]["from_saved_state"], "etcd is used again", 15)
    assert third.subnet == subnet
    assert reaches(*pods)


def test_deleted_lease_is_taken_again(cluster: Cluster) -> None:
    first = cluster.nodes[0]
    key = "/subnets/" + first.subnet.replace("/", "-")
    value = cluster.etcd.get(key)
    cluster.etcd.delete(key)
    wait_for(lambda: cluster.etcd.get(key) == value, "the lease is there again")
    assert first.is_ready()


def test_node_whose_subnet_another_took_stops_and_says_so(cluster: Cluster) -> None:
    third = cluster.nodes[2]
    cluster.start(2)
    key = "/subnets/" + third.subnet.replace("/", "-")
    thief = json.dumps(
        {
            "PublicIP": "192.168.77.99",
            "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": "0e:00:00:00:00:99"},
        }
    )
    assert third.process is not None
    cluster.etcd.put(key, thief)
    try:
        assert third.process.wait(10) == 3
        assert "the lease is lost" in third.log()
        assert "held by another node" in third.log()
        assert third.host.run(["ip", "route", "show", "proto", "76"]).stdout == ""
    finally:
        cluster.etcd.delete(key)


@pytest.mark.parametrize(("flag", "value"), [("--vni", 7), ("--port", 4789)])
def test_changed_network_config_is_taken_up(cluster: Cluster, flag: str, value: int) -> None:
    first, second = cluster.nodes[:2]
    subnets = [first.subnet, second.subnet]
    pods = (first.pod(), second.pod())
    try:
        cluster.init(flag, str(value), "--force")
        for node in (first, second):
            wait_for_network(node, flag.removeprefix("--"), value)
        wait_for(lambda: reaches(*pods), "they reach each other")
        assert [first.subnet, second.subnet] == subnets
    finally:
        cluster.init("--force")
    for node in (first, second):
        wait_for_network(node, "vni", 1)
        wait_for_network(node, "port", 8472)
    wait_for(lambda: reaches(*pods), "they reach each other again")


def wait_for_network(node: LodenNode, name: str, value: object) -> None:
    """Until the node is ready under a network config that says so."""

    def follows() -> bool:
        status = node.status()
        return bool(status.get("ready") and status["network"][name] == value)

    wait_for(follows, f"{node.host.name} has {name} {value}")


def test_direct_routing_bypasses_the_tunnel_on_the_same_link(cluster: Cluster) -> None:
    first, second = cluster.nodes[:2]
    pods = (first.pod(), second.pod())
    config = cluster.etcd.get("/config")
    assert config is not None
    wanted = json.loads(config)
    wanted["Backend"]["DirectRouting"] = True
    direct = f"{second.subnet} via {second.host.address} dev eth0"
    try:
        cluster.etcd.put("/config", json.dumps(wanted))
        wait_for(lambda: direct in first.host.run(["ip", "route"]).stdout, "a direct route")
        wait_for_network(second, "direct_routing", True)
        sent = first.status()["totals"]["out_packets"]
        assert reaches(*pods)
        assert first.status()["totals"]["out_packets"] == sent
    finally:
        cluster.etcd.put("/config", config)
    wait_for(lambda: direct not in first.host.run(["ip", "route"]).stdout, "it is gone again")
    wait_for(lambda: reaches(*pods), "they reach each other again")


# ---- the underlay -------------------------------------------------------------------------------


def test_changed_underlay_address_is_followed_without_restart(cluster: Cluster) -> None:
    first, second = cluster.nodes[:2]
    pods, subnet = (first.pod(), second.pod()), first.subnet
    pids = [first.pid_of(name) for name in ("control", "forwarder")]
    old, new = f"{first.host.address}/24", "192.168.77.200/24"
    default = f"route add default via {UNDERLAY_NETWORK[1]}"
    try:
        first.host.ip(f"address del {old} dev eth0", f"address add {new} dev eth0", default)
        wait_for(lambda: cluster.etcd.leases().get("192.168.77.200") == subnet, "it is published")
        wait_for(lambda: second.routes().get(subnet) == "192.168.77.200", "the peer follows")
        wait_for(lambda: reaches(*pods), "they reach each other")
    finally:
        first.host.ip(f"address del {new} dev eth0", f"address add {old} dev eth0", default)
    wait_for(lambda: second.routes().get(subnet) == str(first.host.address), "back again")
    wait_for(lambda: reaches(*pods), "they reach each other again")
    assert [first.pid_of(name) for name in ("control", "forwarder")] == pids
