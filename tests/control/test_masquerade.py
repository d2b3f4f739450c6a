"""Rules in a real kernel's firewall, judged by the source addresses that arrive."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from control import firewall_tools
from control.firewall_tools import (
    FirewallError,
    ToolMissingError,
    ToolNotPermittedError,
    ToolRefusedError,
)
from control.masquerade import Masquerade
from perf.namespace import run_command
from tests.control.firewalls import DEVICE, NETWORKS, OWN, PEERS, Site, source_seen

TABLE = "loden-loden0"
IPV4, IPV6 = 0, 1  # of a pod's addresses

LEAVE_ALONE = """
table inet elsewhere {
  chain decided { type filter hook prerouting priority mangle; meta mark set 0x4000; }
}
"""


@pytest.fixture
def rules(site: Site) -> Iterator[Masquerade]:
    """Not set yet. The test runs on the node."""
    with site.node.entered():
        rules = Masquerade(DEVICE, NETWORKS, OWN)
        yield rules
        rules.remove()


def nft(*arguments: str) -> str:
    return run_command(["nft", *arguments]).stdout


def write_rules(script: str) -> None:
    run_command(["nft", "-f", "-"], script=script)


both_kinds = pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])


@pytest.mark.netns
@both_kinds
def test_pods_reach_the_outside_as_their_node(
    site: Site, rules: Masquerade, kind: socket.SocketKind
) -> None:
    assert rules.reconcile()
    assert source_seen(site.pod, site.outside, site.outside.address, kind) == str(site.node.address)
    assert source_seen(site.pod, site.outside, site.outside.address_ipv6, kind) == str(
        site.node.address_ipv6
    )


@pytest.mark.netns
@both_kinds
@pytest.mark.parametrize("version", [IPV4, IPV6])
def test_pods_meet_each_other_as_themselves(
    site: Site, rules: Masquerade, kind: socket.SocketKind, version: int
) -> None:
    rules.reconcile()
    ours, theirs = site.pod.addresses[version], site.peer_pod.addresses[version]
    assert source_seen(site.pod, site.peer_pod, theirs, kind) == str(ours)
    assert source_seen(site.peer_pod, site.pod, ours, kind) == str(theirs)


@pytest.mark.netns
@both_kinds
def test_the_outside_reaches_our_pods_as_itself_and_others_as_us(
    site: Site, rules: Masquerade, kind: socket.SocketKind
) -> None:
    rules.reconcile()
    outside = str(site.outside.address)
    assert source_seen(site.outside, site.pod, site.pod.address, kind) == outside
    assert source_seen(site.outside, site.peer_pod, site.peer_pod.address, kind) == str(
        site.node.address
    )


@pytest.mark.netns
def test_marked_packets_are_left_alone(site: Site, rules: Masquerade) -> None:
    rules.reconcile()
    write_rules(LEAVE_ALONE)
    try:
        seen = source_seen(site.pod, site.outside, site.outside.address, socket.SOCK_DGRAM)
    finally:
        nft("delete", "table", "inet", "elsewhere")
    assert seen == str(site.pod.address)


@pytest.mark.netns
def test_multicast_keeps_its_source(site: Site, rules: Masquerade) -> None:
    rules.reconcile()
    group, port, bridge = "239.1.2.3", 5353, str(OWN[0][1])
    with site.outside.entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        receiver.settimeout(5.0)
        receiver.bind((group, port))
        membership = socket.inet_aton(group) + socket.inet_aton(str(site.outside.address))
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        sender.bind((bridge, 0))
        out = socket.inet_aton(str(site.node.address))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, out)
        sender.sendto(b"hello, all", (group, port))
        assert receiver.recvfrom(100)[1][0] == bridge


@pytest.mark.netns
def test_rules_that_are_there_are_not_written_again(rules: Masquerade) -> None:
    assert rules.reconcile()
    before = nft("-a", "list", "table", "inet", TABLE)
    assert not rules.reconcile()
    assert not Masquerade(DEVICE, NETWORKS, OWN).reconcile(), "after a restart"
    assert nft("-a", "list", "table", "inet", TABLE) == before


@pytest.mark.netns
@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        f"flush table inet {TABLE}",
        f"flush chain inet {TABLE} forward",
        f"delete table inet {TABLE}",
        f"add rule inet {TABLE} forward counter",
        f"insert rule inet {TABLE} postrouting return",
        f"chain inet {TABLE} forward {{ policy drop; }}",
        f"add table inet {TABLE} {{ flags dormant; }}",
        f"add chain inet {TABLE} another",
        f"add set inet {TABLE} another {{ type ipv4_addr; }}",
    ],
)
def test_whatever_was_changed_is_put_back(rules: Masquerade, damage: str) -> None:
    rules.reconcile()
    before = nft("list", "table", "inet", TABLE)
    write_rules(damage)
    assert rules.reconcile()
    assert nft("list", "table", "inet", TABLE) == before
    assert not rules.reconcile()


@pytest.mark.netns
def test_a_rule_that_was_edited_is_put_back(rules: Masquerade) -> None:
    rules.reconcile()
    before = nft("list", "table", "inet", TABLE)
    items = json.loads(nft("-j", "list", "table", "inet", TABLE))["nftables"]
    handle = next(item["rule"]["handle"] for item in items if "rule" in item)
    nft("replace", "rule", "inet", TABLE, "postrouting", "handle", str(handle), "return")
    assert rules.reconcile()
    assert nft("list", "table", "inet", TABLE) == before


@pytest.mark.netns
def test_other_subnets_make_other_rules(site: Site, rules: Masquerade) -> None:
    rules.reconcile()
    moved = Masquerade(DEVICE, NETWORKS, [*OWN, ip_network("172.17.99.7/32")])
    assert moved.reconcile()
    assert "172.17.99.7" in nft("list", "table", "inet", TABLE)


@pytest.mark.netns
def test_prefixes_may_overlap_and_families_may_lack(site: Site, rules: Masquerade) -> None:
    overlapping = [*OWN, ip_network("172.17.10.5/32"), ip_network("172.17.10.0/25")]
    assert Masquerade(DEVICE, [*NETWORKS, *PEERS], overlapping).reconcile()
    assert Masquerade(DEVICE, NETWORKS[:1], OWN[:1]).reconcile()
    assert "ip6" not in nft("list", "table", "inet", TABLE)
    assert Masquerade(DEVICE, NETWORKS[1:], []).reconcile()


@pytest.mark.netns
def test_forwarding_is_accepted_for_the_cluster_alone(site: Site, rules: Masquerade) -> None:
    rules.reconcile()
    nft("add", "rule", "inet", TABLE, "forward", "drop")
    assert source_seen(site.pod, site.outside, site.outside.address, socket.SOCK_STREAM)
    assert source_seen(site.outside, site.pod, site.pod.address, socket.SOCK_STREAM)
    site.outside.ip("route add 203.0.113.9/32 via 192.168.77.10")
    site.peer.ip("address add 203.0.113.9/32 dev lo")
    site.node.ip("route add 203.0.113.9/32 via 192.168.77.11")
    ping = ["ping", "-c1", "-W1", "203.0.113.9"]
    assert site.outside.run(ping, check=False).returncode != 0, "the drop is for everybody else"
    rules.reconcile()
    assert site.outside.run(ping, check=False).returncode == 0


@pytest.mark.netns
def test_either_chain_can_be_had_alone(rules: Masquerade) -> None:
    Masquerade(DEVICE, NETWORKS, OWN, forward=False).reconcile()
    assert "chain forward" not in nft("list", "table", "inet", TABLE)
    Masquerade(DEVICE, NETWORKS, OWN, ip_masq=False).reconcile()
    assert "masquerade" not in nft("list", "table", "inet", TABLE)


@pytest.mark.netns
def test_remove_leaves_nothing_of_ours_and_all_of_others(rules: Masquerade) -> None:
    write_rules("table inet elsewhere { chain theirs { counter; }; }")
    before = nft("list", "ruleset")
    other_device = Masquerade('we:ird"0', NETWORKS, OWN)
    for ours in (rules, other_device):
        ours.reconcile()
    other_device.remove()
    assert not rules.reconcile(), "a table is one device's alone"
    for _ in range(2):
        rules.remove()
    assert nft("list", "ruleset") == before
    nft("delete", "table", "inet", "elsewhere")


@contextlib.contextmanager
def nft_replaced(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> Iterator[None]:
    """`nft` is this shell script meanwhile."""
    program = directory / "nft"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        yield


def test_a_host_without_nft_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(firewall_tools, "DIRECTORIES", str(tmp_path))
    with pytest.raises(ToolMissingError, match="install the package nftables") as raised:
        Masquerade(DEVICE, NETWORKS, OWN).reconcile()
    assert not raised.value.retryable


@pytest.mark.netns
def test_a_lack_of_privilege_is_said(
    rules: Masquerade, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    as_nobody = 'exec setpriv --reuid 65534 --clear-groups /usr/sbin/nft "$@"'
    with (
        nft_replaced(monkeypatch, tmp_path, as_nobody),
        pytest.raises(ToolNotPermittedError, match="CAP_NET_ADMIN") as raised,
    ):
        rules.reconcile()
    assert not raised.value.retryable


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Error: Could not process rule: busy' >&2; exit 1", "nft failed: Error: Could not"),
        ("exit 1", "it gave no reason"),
        ("echo this is not JSON", "its listing is not JSON"),
        ("exec sleep 60", "no answer within 0.3 s"),
    ],
)
def test_what_nft_says_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str
) -> None:
    monkeypatch.setattr(firewall_tools, "TIMEOUT_S", 0.3)
    with (
        nft_replaced(monkeypatch, tmp_path, script),
        pytest.raises(ToolRefusedError, match=message) as raised,
    ):
        Masquerade(DEVICE, NETWORKS, OWN).reconcile()
    assert isinstance(raised.value, FirewallError)
    assert raised.value.retryable
