"""Whole nodes on real parts: two, three of them, and whatever may happen to them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.traffic import measure_tcp, ping
from tests.netns.nodes import Cluster, SteadyPing, cluster_of, reaches, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Nodes 0 and 1, started at the same moment."""
    with cluster_of(3, tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.init()
        cluster.start(0, 1)
        yield cluster


@pytest.fixture
def cluster(running: Cluster, capsys: pytest.CaptureFixture[str]) -> Iterator[Cluster]:
    """With nodes 0 and 1 ready; the logs are shown when the test fails."""
    running.start(0, 1)
    yield running
    print(running.logs())


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
