"""Rules as nft and iptables write them, and whether they are in the way."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from control.doctor.finding import Level
from control.doctor.firewall import check_firewall
from control.doctor.network import Place
from perf.namespace import run_command
from perf.topology import Host, Topology

pytestmark = pytest.mark.netns

PLACE = Place(
    device="loden0",
    port=8472,
    networks=(ip_network("10.5.0.0/16"), ip_network("fd05::/48")),
    subnets=(ip_network("10.5.1.0/24"), ip_network("fd05:0:0:1::/64")),
    interface="eth0",
    addresses=(ip_address("192.168.77.10"), ip_address("fd77::10")),
    forwarder_pid=1,
)
ESTABLISHED = "ct state established,related accept"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Topology(2) as topology:
        yield topology.hosts[0]


def complaints(host: Host, hook: str, policy: str, *rules: str) -> list[str]:
    """What is said of one base chain; rules that begin with "sub:" are those of chain `sub`."""
    lines = ["flush ruleset", "add table inet t", "add chain inet t sub"]
    lines.append(f"add chain inet t top {{ type filter hook {hook} priority 0; policy {policy}; }}")
    for rule in rules:
        inner = rule.removeprefix("sub:")
        lines.append(f"add rule inet t {'top' if inner == rule else 'sub'} {inner}")
    with host.entered():
        run_command(["nft", "-f", "-"], script="\n".join(lines) + "\n")
        found = check_firewall(PLACE, "docker0")
    assert all(f.mend for f in found if f.level is Level.FAILURE)
    return [finding.says for finding in found if finding.level is Level.FAILURE]


@pytest.mark.parametrize(
    ("hook", "policy", "rules"),
    [
        ("input", "accept", []),
        ("input", "drop", ["udp dport 8472 accept"]),
        ("input", "drop", ["iifname eth0 meta l4proto udp th dport { 53, 8472 } accept"]),
        ("input", "drop", ["meta l4proto { icmp, udp } accept"]),
        ("input", "drop", ['iifname "eth*" udp dport 8000-9000 accept']),
        ("input", "drop", ["jump sub", "sub:accept"]),
        ("input", "accept", ["tcp dport 8472 drop"]),
        ("input", "accept", ["udp dport 4789 drop"]),
        ("input", "accept", ["ct state invalid drop"]),
        ("input", "accept", ["iifname != eth0 drop"]),
        ("input", "accept", ["limit rate over 9/second drop"]),
        ("forward", "drop", ["iifname loden0 accept", "oifname loden0 accept"]),
        ("forward", "drop", ["ip saddr 10.5.0.0/16 accept", "ip6 saddr fd05::/48 accept"]),
    ],
)
def test_rules_that_let_pass_are_no_complaint(
    host: Host, hook: str, policy: str, rules: list[str]
) -> None:
    assert complaints(host, hook, policy, *rules) == []


@pytest.mark.parametrize(
    ("hook", "policy", "rules", "what"),
    [
        ("input", "drop", [], "tunnel packets of the other nodes"),
        ("input", "drop", [ESTABLISHED], "tunnel packets of the other nodes"),
        ("input", "accept", ["udp dport 8472 reject"], "tunnel packets of the other nodes"),
        ("input", "drop", ["jump sub", "sub:return"], "tunnel packets of the other nodes"),
        ("output", "accept", ["udp dport 8472 drop"], "tunnel packets to the other nodes"),
        (
            "forward",
            "drop",
            [ESTABLISHED, "iifname docker0 accept"],
            "packets to pods from other nodes",
        ),
        (
            "forward",
            "accept",
            ["ip daddr 10.5.1.0/24 iifname loden0 drop"],
            "packets to pods from other nodes",
        ),
    ],
)
def test_rules_that_drop_are_named(
    host: Host, hook: str, policy: str, rules: list[str], what: str
) -> None:
    said = complaints(host, hook, policy, *rules)
    assert said
    assert all(text == f"{what} are dropped by the chain inet t top" for text in said)


def test_docker_policy_in_iptables_is_seen(host: Host) -> None:
    rules = (
        "-P FORWARD DROP",
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
    )
    with host.entered():
        run_command(["nft", "flush", "ruleset"])
        for rule in rules:
            run_command(["iptables", *rule.split()])
        said = [f.says for f in check_firewall(PLACE, "docker0") if f.level is Level.FAILURE]
        run_command(["iptables", "-A", "FORWARD", "-d", "10.5.0.0/16", "-j", "ACCEPT"])
        after = [f.says for f in check_firewall(PLACE, "docker0") if f.level is Level.FAILURE]
    assert said == ["packets to pods from other nodes are dropped by the chain ip filter FORWARD"]
    assert after == []
