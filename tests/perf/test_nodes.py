"""Nodes on a topology: ready means ready, and what fails shows its log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.nodes import Etcd, Node, NodeFailed, init_network, log_tail
from perf.topology import Topology

pytestmark = [pytest.mark.netns, pytest.mark.etcd]


@pytest.fixture
def topology() -> Iterator[Topology]:
    with Topology() as topology:
        yield topology


def test_node_is_ready_once_it_has_its_subnet(topology: Topology, tmp_path: Path) -> None:
    first, second = topology.hosts
    etcd = Etcd(first, tmp_path / "etcd")
    etcd.start()
    init_network(second, etcd.url, "10.5.0.0/16")
    node = Node(second, tmp_path / "node", etcd.url)
    node.start()

    env = node.wait_until_ready()

    assert str(env.network) == "10.5.0.0/16"
    assert node.ask("status")["subnet"] == str(env.node_subnet)
    assert [route["prefix"] for route in node.ask("routes")] == [str(env.node_subnet)]


def test_node_that_ends_shows_the_end_of_its_log(topology: Topology, tmp_path: Path) -> None:
    host = topology.hosts[0]
    node = Node(host, tmp_path / "node", etcd_url="http://192.168.77.10:2379")
    node.start("--cpus", "9999")

    with pytest.raises(NodeFailed, match=f"loden on {host.name} ended with") as failure:
        node.wait_until_ready(timeout_s=30)

    assert re.search(r"^    .*9999", str(failure.value), re.MULTILINE)


def test_log_tail_is_the_last_lines_indented(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert log_tail(log) == "    (its log is empty)"
    log.write_text("one\ntwo\nthree\n")
    assert log_tail(log, lines=2) == "    two\n    three"
