"""A pod that moves from node to node and keeps its address: where its packets go meanwhile."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from perf.nodes import LODEN, PACKAGES_DIR
from perf.topology import UNDERLAY_DEVICE, Host, Pod
from tests.netns.nodes import Cluster, LodenNode, SteadyPing, cluster_of, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_of(3, tmp_path_factory.mktemp("moving")) as cluster:
        cluster.init()
        cluster.start(0, 1, 2)
        yield cluster
        print(cluster.logs())


def loden_route(cluster: Cluster, *words: str) -> str:
    argv = [*LODEN, "route", *words, "--etcd-endpoints", cluster.etcd.url]
    return cluster.etcd.host.run(argv, cwd=PACKAGES_DIR).stdout


@contextlib.contextmanager
def sent_to(sender: Host, receiver: Host) -> Iterator[list[str]]:
    """The datagrams between two hosts from entering to leaving, a line each, once it is left."""
    found: list[str] = []
    words = ["-nl", "-i", UNDERLAY_DEVICE, f"udp and dst host {receiver.address}"]
    capture = sender.popen(["tcpdump", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert capture.stdout is not None
    while b"listening on" not in capture.stdout.readline():
        assert capture.poll() is None
    try:
        yield found
    finally:
        capture.terminate()
        lines = capture.communicate(timeout=10)[0].decode().splitlines()
        found += [line for line in lines if " > " in line]


@contextlib.contextmanager
def pod_on(node: LodenNode, address: str) -> Iterator[None]:
    """The address answers on a pod of the node, and its host knows that."""
    pod: Pod = node.pod()
    is_at_home = IPv4Address(address) in IPv4Network(node.subnet)
    routes = [] if is_at_home else [f"{address}/32 via {pod.address}"]
    pod.ip(f"address add {address}/32 dev eth0")
    node.host.ip(*(f"route add {route}" for route in routes))
    try:
        yield
    finally:
        node.host.ip(*(f"route del {route}" for route in routes))
        pod.ip(f"address del {address}/32 dev eth0")


def test_no_packet_goes_to_the_old_node_once_the_change_is_seen(cluster: Cluster) -> None:
    watcher, *homes = cluster.nodes
    moved = str(IPv4Network(homes[0].subnet)[99])
    for old, new in ((homes[0], homes[1]), (homes[1], homes[0])):
        wanted = str(new.host.address)
        with pod_on(new, moved):
            loden_route(cluster, "add", moved, "--to", wanted, "--replace")
            wait_for(lambda w=wanted: watcher.routes().get(f"{moved}/32") == w, "it is seen")  # type: ignore[misc]
            with (
                sent_to(watcher.host, old.host) as wrong,
                sent_to(watcher.host, new.host) as right,
                SteadyPing(watcher.pod(), IPv4Address(moved)) as steady,
            ):
                time.sleep(0.5)  # pings meanwhile
        assert steady.sent > 20
        assert steady.lost == 0
        assert wrong == []
        assert len(right) >= steady.received
    assert f"{moved}/32" in loden_route(cluster, "list")
    loden_route(cluster, "del", moved)
    wait_for(lambda: f"{moved}/32" not in watcher.routes(), "the route is gone with its key")


def test_no_node_follows_a_route_to_itself_into_the_overlay(cluster: Cluster) -> None:
    watcher, home, _ = cluster.nodes
    moved = str(IPv4Network(watcher.subnet)[98])
    with pod_on(home, moved):
        loden_route(cluster, "add", moved, "--to", str(home.host.address))
        wait_for(lambda: home.routes().get(f"{moved}/32") == "local", "it is its own")
        wait_for(lambda: moved in watcher.host.run(["ip", "route"]).stdout, "the old home's route")
        with SteadyPing(watcher.host, IPv4Address(moved)) as steady:
            time.sleep(0.3)  # pings meanwhile
        assert steady.lost == 0
        assert moved not in home.host.run(["ip", "route", "show", "proto", "76"]).stdout
    loden_route(cluster, "del", moved)
    wait_for(lambda: moved not in watcher.host.run(["ip", "route"]).stdout, "it is gone")
