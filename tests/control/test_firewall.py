"""When the firewall is looked at, and which of its failures matter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from control import firewall, firewall_tools
from control.firewall import LOOK_AGAIN_S, LOOKING_SHARE, Firewall
from control.firewall_tools import ToolMissingError
from perf.namespace import run_command
from perf.topology import Host, Topology
from tests.control.firewalls import DEVICE, NETWORKS, OWN

WRITTEN = ["firewall rules written"]


class Clock:
    """Goes on when told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.look_s = 0.0
        """What each reading adds: a look reads twice, at its beginning and at its end."""

    def monotonic(self) -> float:
        self.now += self.look_s
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(firewall, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def host() -> Iterator[Host]:
    """The test runs inside."""
    with Topology(hosts=1) as topology, topology.hosts[0].entered():
        yield topology.hosts[0]


def firewall_of(*, ip_masq: bool) -> Firewall:
    rules = Firewall(DEVICE, NETWORKS, ip_masq=ip_masq, forward=True)
    rules.follow(OWN)
    return rules


@pytest.mark.netns
def test_rules_are_looked_at_after_a_notice_and_now_and_then(host: Host, clock: Clock) -> None:
    rules = firewall_of(ip_masq=True)
    assert rules.reconcile() == WRITTEN
    run_command(["nft", "flush", "ruleset"])
    assert rules.reconcile() == [], "nobody said anything"
    rules.note_change()
    assert rules.reconcile() == WRITTEN
    run_command(["nft", "flush", "ruleset"])
    clock.now += LOOK_AGAIN_S
    assert rules.reconcile() == WRITTEN
    rules.follow(OWN[:1])
    assert rules.reconcile() == WRITTEN, "ours have changed"
    rules.remove()
    assert run_command(["nft", "list", "ruleset"]).stdout == ""


@pytest.mark.netns
def test_looking_takes_no_more_than_its_share_of_the_time(host: Host, clock: Clock) -> None:
    rules = firewall_of(ip_masq=True)
    clock.look_s = 0.5
    rules.reconcile()
    clock.look_s = 0.0
    run_command(["nft", "flush", "ruleset"])
    rules.note_change()
    clock.now += 0.9 * 0.5 / LOOKING_SHARE
    assert rules.reconcile() == []
    clock.now += 0.2 * 0.5 / LOOKING_SHARE
    assert rules.reconcile() == WRITTEN


def test_host_without_the_tools_is_told_once_and_goes_on_unless_it_shall_masquerade(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(firewall_tools, "DIRECTORIES", str(tmp_path))
    accepting = firewall_of(ip_masq=False)
    for _ in range(2):
        assert accepting.reconcile() == []
        accepting.note_change()
    accepting.remove()
    assert caplog.text.count("install the package nftables") == 1
    with pytest.raises(ToolMissingError, match="install the package nftables"):
        firewall_of(ip_masq=True).reconcile()
