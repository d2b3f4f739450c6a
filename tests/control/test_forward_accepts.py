"""Our accepts among iptables' rules: where they stand, and that packets pass."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from control import firewall_tools
from control.firewall_tools import ToolRefusedError
from control.forward_accepts import ForwardAccepts
from control.host_state import IPNetwork
from perf.namespace import CommandError, run_command
from tests.control.firewalls import DEVICE, NETWORKS, OWN, Site, source_seen

TOOLS = ("iptables", "ip6tables")
OURS = "-m comment --comment loden-loden0 -j ACCEPT"
ACCEPTS = [
    f"-i loden0-gso {OURS}",
    f"-s 172.17.0.0/16 {OURS}",
    f"-d 172.17.0.0/16 {OURS}",
]
WITHIN = f"-s 172.17.0.0/16 -d 172.17.0.0/16 {OURS}"
DOCKERS = """
-P FORWARD DROP
-N DOCKER-USER
-N DOCKER
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -j DOCKER
-A DOCKER-USER -j RETURN
"""
"""Docker's rules, as far as they matter here, and as it has made them since version 17.06."""
DOCKER_28 = DOCKERS + "-A DOCKER ! -i docker0 -o docker0 -j DROP"


@pytest.fixture
def accepts(site: Site) -> Iterator[ForwardAccepts]:
    """Not set yet. The test runs on the node, which has no rules at first and at the end."""
    with site.node.entered():
        yield ForwardAccepts(DEVICE, NETWORKS)
        run_command(["nft", "flush", "ruleset"])


def iptables(*commands: str, tools: tuple[str, ...] = ("iptables",)) -> None:
    for command in commands:
        for tool in tools:
            run_command([tool, *command.split()])


def set_up(commands: str, tools: tuple[str, ...] = ("iptables",)) -> None:
    iptables(*commands.strip().splitlines(), tools=tools)


def rules_of(chain: str, tool: str = "iptables") -> list[str]:
    """Its rules, without the policy or the declaration."""
    listed = run_command([tool, "-S", chain]).stdout.splitlines()
    return [line.removeprefix(f"-A {chain} ") for line in listed if line.startswith("-A")]


def passes(site: Site, version: int) -> bool:
    """Whether a packet from the peer's pod reaches ours."""
    address = site.pod.addresses[version]
    try:
        site.peer_pod.run(["ping", "-c1", "-W0.3", str(address)])
    except CommandError:
        return False
    return True


@pytest.mark.netns
def test_nothing_is_written_where_nobody_uses_iptables(accepts: ForwardAccepts) -> None:
    assert not accepts.reconcile()
    assert run_command(["nft", "list", "ruleset"]).stdout == ""
    iptables("-A INPUT -p icmp -j ACCEPT", "-A OUTPUT -j ACCEPT")
    assert not accepts.reconcile()
    assert rules_of("FORWARD") == []


@pytest.mark.netns
@pytest.mark.parametrize("docker", [DOCKERS, DOCKER_28])
def test_dockers_drops_do_not_meet_the_clusters_packets(
    site: Site, accepts: ForwardAccepts, docker: str
) -> None:
    set_up(docker, TOOLS)
    assert not passes(site, 0)
    assert not passes(site, 1)
    assert accepts.reconcile()
    assert passes(site, 0)
    assert passes(site, 1)
    assert rules_of("DOCKER-USER") == [WITHIN, "-j RETURN"]
    assert rules_of("FORWARD") == ["-j DOCKER-USER", "-o docker0 -j DOCKER", *ACCEPTS]
    assert not accepts.reconcile()


@pytest.mark.netns
def test_dockers_drops_before_routing_do_not_meet_them_either(
    site: Site, accepts: ForwardAccepts
) -> None:
    set_up(DOCKER_28)
    iptables(f"-t raw -A PREROUTING -d {site.pod.address} ! -i docker0 -j DROP")
    iptables("-t raw -I PREROUTING -p udp -j ACCEPT")
    device = ForwardAccepts("eth0", NETWORKS)  # by which the packets come here
    assert device.reconcile()
    assert passes(site, 0)
    assert not device.reconcile()
    outside = site.outside.run(["ping", "-c1", "-W0.3", str(site.pod.address)], check=False)
    assert outside.returncode != 0, "what Docker keeps out stays out"
    device.remove()
    assert "loden" not in run_command(["iptables-save"]).stdout


@pytest.mark.netns
def test_the_outside_reaches_pods_as_with_flannel(site: Site, accepts: ForwardAccepts) -> None:
    set_up(DOCKERS)
    accepts.reconcile()
    seen = source_seen(site.outside, site.pod, site.pod.address, socket.SOCK_STREAM)
    assert seen == str(site.outside.address)
    assert source_seen(site.pod, site.outside, site.outside.address, socket.SOCK_STREAM)


@pytest.mark.netns
def test_what_an_operator_drops_stays_dropped(site: Site, accepts: ForwardAccepts) -> None:
    set_up(DOCKERS)
    iptables(f"-I DOCKER-USER -s {site.peer_pod.address} -j DROP")
    accepts.reconcile()
    assert not passes(site, 0)
    assert rules_of("DOCKER-USER")[1:] == [WITHIN, "-j RETURN"]


@pytest.mark.netns
@pytest.mark.parametrize("end", ["DROP", "REJECT --reject-with icmp-host-prohibited"])
def test_they_stand_before_a_rule_for_all_the_rest(
    site: Site, accepts: ForwardAccepts, end: str
) -> None:
    others = ["-i lo -j ACCEPT", f"-j {end}"]
    iptables(*(f"-A FORWARD {rule}" for rule in others))
    assert accepts.reconcile()
    assert rules_of("FORWARD") == [others[0], *ACCEPTS, others[1]]
    assert passes(site, 0)


@pytest.mark.netns
@pytest.mark.parametrize(
    "damage",
    [
        "-F FORWARD",
        "-F DOCKER-USER",
        "-D FORWARD -s 172.17.0.0/16 " + OURS,
        "-A FORWARD -s 172.17.0.0/16 " + OURS,
        "-I FORWARD -j DROP",
        "-R FORWARD 4 -s 172.18.0.0/16 " + OURS,
    ],
)
def test_whatever_was_changed_is_put_back(accepts: ForwardAccepts, damage: str) -> None:
    set_up(DOCKERS)
    accepts.reconcile()
    iptables(damage)
    assert accepts.reconcile()
    assert not accepts.reconcile()
    ours = [rule for rule in rules_of("FORWARD") if OURS in rule]
    assert ours == ACCEPTS
    assert WITHIN in rules_of("DOCKER-USER")


@pytest.mark.netns
def test_other_programs_may_add_rules_behind_ours(accepts: ForwardAccepts) -> None:
    set_up(DOCKERS)
    accepts.reconcile()
    iptables("-A FORWARD -i eth7 -j ACCEPT", "-I FORWARD -i eth8 -j ACCEPT")
    assert not accepts.reconcile()


@pytest.mark.netns
def test_rules_of_an_older_network_are_replaced(accepts: ForwardAccepts) -> None:
    set_up(DOCKERS)
    accepts.reconcile()
    moved: list[IPNetwork] = [IPv4Network("10.9.0.0/16"), IPv6Network("fd19::/48")]
    assert ForwardAccepts(DEVICE, moved).reconcile()
    assert rules_of("DOCKER-USER")[0].startswith("-s 10.9.0.0/16 -d 10.9.0.0/16")
    assert "172.17." not in run_command(["iptables-save"]).stdout


@pytest.mark.netns
def test_remove_takes_ours_and_leaves_all_others(accepts: ForwardAccepts) -> None:
    set_up(DOCKERS, TOOLS)
    before = [run_command([tool, "-S"]).stdout for tool in TOOLS]
    other_device = ForwardAccepts("other0", NETWORKS)
    for ours in (accepts, other_device):
        assert ours.reconcile()
    other_device.remove()
    assert not accepts.reconcile(), "each device has its own"
    for _ in range(2):
        accepts.remove()
    assert [run_command([tool, "-S"]).stdout for tool in TOOLS] == before


@pytest.mark.netns
def test_they_go_when_nobody_drops_any_more(accepts: ForwardAccepts) -> None:
    iptables("-P FORWARD DROP")
    assert accepts.reconcile()
    iptables("-P FORWARD ACCEPT")
    assert accepts.reconcile()
    assert rules_of("FORWARD") == []


def test_a_host_without_iptables_needs_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(firewall_tools, "DIRECTORIES", str(tmp_path))
    assert not ForwardAccepts(DEVICE, OWN).reconcile()


def test_what_iptables_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "iptables-save"
    program.write_text("#!/bin/sh\necho 'the table is incompatible' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(shutil.which('sh') or '').parent}")
    with pytest.raises(ToolRefusedError, match="iptables-save failed: the table is incomp"):
        ForwardAccepts(DEVICE, OWN[:1]).reconcile()
