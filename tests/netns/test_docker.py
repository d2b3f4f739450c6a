"""Real Dockers on loden nodes: started with the options that loden wrote, behind their firewalls.

host0 ─ node 0 ─ Docker ─ container 10.5.x.2 ─┐
host1 ─ node 1 ─ Docker ─ container 10.5.y.2 ─┤ wire
host2 ─ etcd, and the outside ────────────────┘
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from control.docker_service import FILE_NAME
from perf.nodes import init_network
from perf.topology import BRIDGE_DEVICE
from tests.control.firewalls import source_seen
from tests.netns.dockers import Container, Docker, docker_on
from tests.netns.nodes import Cluster, LodenNode, cluster_of, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd, pytest.mark.docker]

FILE_BYTES = 4 << 20

SYSTEMCTL = """\
#!/bin/sh
case $1 in
show)
    echo LoadState=loaded
    echo ActiveState=active
    echo "EnvironmentFiles={options} (ignore_errors=no)" ;;
*)
    echo "$@" >>{calls} ;;
esac
"""
"""On PATH of the node, whose real one might restart the machine's own Docker."""


class Site:
    """A cluster and the Dockers on it, a container in each."""

    def __init__(self, cluster: Cluster, directory: Path, stack: contextlib.ExitStack) -> None:
        self.cluster, self._directory = cluster, directory
        self.nodes, self.outside = cluster.nodes, cluster.etcd.host
        self.dockers: list[Docker] = []
        self.containers: list[Container] = []
        for node in self.nodes:
            node.host.set_sysctl("net/ipv4/ip_forward", 0)  # so that Docker sets it, and drops
            self.start_node(node)
        for node in self.nodes:
            node.wait_ready()
        cluster.start(0, 1)
        for node in self.nodes:
            docker = stack.enter_context(docker_on(node.host, node.subnet_file.parent))
            self.dockers.append(docker)
            docker.start()
            self.containers.append(docker.run(f"on-{node.host.name}"))

    def start_node(self, node: LodenNode) -> None:
        directory = self._directory / node.host.name
        directory.mkdir(exist_ok=True)
        systemctl = directory / "systemctl"
        options = node.subnet_file.with_name(FILE_NAME)
        systemctl.write_text(SYSTEMCTL.format(options=options, calls=directory / "calls"))
        systemctl.chmod(0o755)
        path = f"{directory}:{os.environ['PATH']}"
        node.launch([*node.run_words(), "--ip-masq", "--docker"], {"PATH": path})

    def restarts_asked_for(self, node: LodenNode) -> int:
        """How often the node has had Docker restarted so far; it never asks for anything else."""
        calls = (self._directory / node.host.name / "calls").read_text().splitlines()
        assert set(calls) == {"--no-block restart docker.service"}
        return len(calls)

    def restart_docker(self, number: int) -> None:
        """As systemd does, with the container."""
        docker = self.dockers[number]
        docker.stop()
        docker.start()
        self.containers[number] = docker.start_again(self.containers[number])

    def reach_each_other(self) -> bool:
        one, other = self.containers
        return all(a.pings(b.address) for a, b in ((one, other), (other, one)))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("docker")
    with cluster_of(2, directory) as cluster, contextlib.ExitStack() as stack:
        cluster.init()
        yield Site(cluster, directory, stack)


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """The logs are shown when the test fails."""
    yield running
    print(running.cluster.logs())
    for docker in running.dockers:
        print(docker.log()[-3000:])


def test_docker_starts_on_the_bridge_that_loden_wrote(site: Site) -> None:
    for node, docker, container in zip(site.nodes, site.dockers, site.containers, strict=True):
        subnet = IPv4Network(node.subnet)
        shown = docker.host.run(["ip", "address", "show", BRIDGE_DEVICE]).stdout
        assert f"inet {subnet[1]}/{subnet.prefixlen}" in shown
        assert container.address in subnet
        assert f"mtu {node.status()['node']['mtu_bytes']} " in container.execute("ip", "link")
        firewall = docker.host.run(["iptables", "-S"]).stdout
        assert "-P FORWARD DROP" in firewall, "or these tests show less than they say"
        assert "MASQUERADE" not in docker.host.run(["iptables", "-t", "nat", "-S"]).stdout
        assert site.restarts_asked_for(node) == 1, "a Docker that ran before"


def test_containers_on_different_hosts_ping_and_exchange_files(site: Site) -> None:
    assert site.reach_each_other()
    one, other = site.containers
    for server, client in ((one, other), (other, one)):
        blocks = str(FILE_BYTES >> 16)
        server.execute("dd", "if=/dev/urandom", "of=/file", "bs=64k", f"count={blocks}")
        client.execute("wget", "-q", "-O", "/copy", f"http://{server.address}/file")
        sent, got = server.execute("sha256sum", "/file"), client.execute("sha256sum", "/copy")
        assert sent.split()[0] == got.split()[0]


def test_containers_meet_as_themselves_and_the_outside_sees_their_node(site: Site) -> None:
    one, other = site.containers
    tcp = socket.SOCK_STREAM
    assert source_seen(one, other, other.address, tcp) == str(one.address)
    assert source_seen(other, one, one.address, tcp) == str(other.address)
    for node, container in zip(site.nodes, site.containers, strict=True):
        seen = source_seen(container, site.outside, site.outside.address, tcp)
        assert seen == str(node.host.address)


def test_containers_reach_each_other_through_the_drops_of_docker_28(site: Site) -> None:
    host, container = site.nodes[0].host, site.containers[0]
    drop = f"! -i {BRIDGE_DEVICE} -j DROP"
    host.run(f"iptables -t raw -A PREROUTING -d {container.address} {drop}".split())
    host.run(f"iptables -A DOCKER -o {BRIDGE_DEVICE} {drop}".split())
    wait_for(lambda: site.containers[1].pings(container.address), "our rules come before")
    host.run(["iptables", "-t", "raw", "-F"])


def test_rules_that_somebody_flushed_are_back_at_once(site: Site) -> None:
    host = site.nodes[0].host
    before = host.run(["nft", "list", "table", "inet", "loden-loden0"]).stdout
    for command in ("iptables -F DOCKER-USER", "iptables -F FORWARD", "nft flush ruleset"):
        host.run(command.split())
        host.run(["iptables", "-P", "FORWARD", "DROP"])
        wait_for(lambda: site.containers[1].pings(site.containers[0].address), command)
    wait_for(
        lambda: host.run(["nft", "list", "table", "inet", "loden-loden0"]).stdout == before,
        "our table is back",
    )
    site.restart_docker(0)  # its own rules
    assert site.reach_each_other()


def test_docker_is_restarted_for_another_subnet_and_for_nothing_else(site: Site) -> None:
    node = site.nodes[0]
    asked = [site.restarts_asked_for(one) for one in site.nodes]
    control = node.pid_of("control")
    node.kill("control")
    wait_for(lambda: node.pid_of("control") not in (0, control) and node.is_ready(), "control")
    assert [site.restarts_asked_for(one) for one in site.nodes] == asked

    init_network(site.outside, site.cluster.etcd.url, "10.6.0.0/16", "--force")
    wait_for(
        lambda: [site.restarts_asked_for(one) for one in site.nodes] == [n + 1 for n in asked],
        "both have Docker restarted, once",
        30.0,
    )
    for number, one in enumerate(site.nodes):
        site.restart_docker(number)
        assert one.subnet.startswith("10.6.")
        assert site.containers[number].address in IPv4Network(one.subnet)
    site.cluster.start(0, 1)
    assert site.reach_each_other()


def test_node_that_leaves_takes_its_rules_along(site: Site) -> None:
    node = site.nodes[0]
    assert "loden-loden0" in node.host.run(["iptables-save"]).stdout
    assert node.stop() == 0
    assert "loden" not in node.host.run(["nft", "list", "ruleset"]).stdout
    assert "loden" not in node.host.run(["iptables-save"]).stdout
    assert "jump DOCKER-USER" in node.host.run(["nft", "list", "ruleset"]).stdout
