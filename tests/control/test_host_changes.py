"""Notices of changes, from a real kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from control.host_changes import FirewallChanges, HostChanges
from perf.namespace import Namespace, run_command
from perf.topology import Topology

pytestmark = pytest.mark.netns

DEVICE = "loden0"


@pytest.fixture
def host() -> Iterator[Namespace]:
    """The test runs inside its namespace."""
    with Topology(hosts=1) as topology, topology.hosts[0].entered():
        yield topology.hosts[0]


def test_changes_wake_the_reader_and_drain_clears_them(host: Namespace) -> None:
    changes = HostChanges()
    assert not changes.wait(timeout_s=0)

    for command in (
        f"link add {DEVICE} type bridge",
        f"link set {DEVICE} up",
        "route add 10.8.0.0/16 dev eth0",
        f"link del {DEVICE}",
    ):
        host.ip(command)
        assert changes.wait(timeout_s=5), command

    assert not changes.drain()
    changes.close()


def test_lost_notices_count_as_a_change(host: Namespace) -> None:
    changes = HostChanges()
    host.ip(*(f"route add 10.{a}.{b}.0/24 dev eth0" for a in range(1, 9) for b in range(256)))

    assert changes.drain()
    assert not changes.drain()
    changes.close()


def test_any_firewall_rule_is_a_change_and_a_look_at_them_is_none(host: Namespace) -> None:
    changes = FirewallChanges()
    for command in (
        "nft add table inet mine",
        "iptables -A FORWARD -s 10.5.0.0/16 -j ACCEPT",
        "ip6tables -P FORWARD DROP",
        "nft flush ruleset",
    ):
        run_command(command.split())
        assert changes.wait(timeout_s=5), command

    for command in ("nft list ruleset", "iptables-save", "ip6tables-save"):
        run_command(command.split())
    assert not changes.drain()
    changes.close()
