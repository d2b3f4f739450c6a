"""`loden status`: everything on one screen, whatever there is to say, and whatever is missing."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from control.daemon import Daemon
from control.etcd_config import EtcdConfig
from control.options import ControlOptions
from control.rib import Reason
from control.status import describe, gather, not_ready_reasons
from control.status_screen import show
from forwarder.counters import Drop


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Of a control process before it has heard of anything."""
    etcd = EtcdConfig(("http://192.0.2.1:2379",))
    daemon = Daemon(ControlOptions(etcd=etcd, run_dir=tmp_path, state_dir=tmp_path / "state"))
    yield daemon
    daemon._loop.close()


@pytest.fixture
def status(daemon: Daemon, idle_forwarder: Path) -> dict[str, Any]:
    """Of a whole node that has just been started."""
    return copy.deepcopy({**gather(idle_forwarder, interval_s=0.01), **describe(daemon)})


def shown(status: dict[str, Any], width: int = 80) -> str:
    output = io.StringIO()
    show(status, Console(file=output, width=width))
    return output.getvalue()


def words_of(text: str) -> str:
    """Whatever lines they are broken into."""
    return " ".join(text.split())


def test_node_that_has_heard_nothing_says_so(status: dict[str, Any]) -> None:
    text = words_of(shown(status))
    assert "ready no; no routes have been read from etcd yet" in text
    assert "etcd disconnected for 0 s; http://192.0.2.1:2379" in text
    assert "lease no lease: etcd has not answered yet" in text
    assert "nothing was dropped" in text


def test_ready_asks_for_packets_and_readyz_for_the_lease_too(daemon: Daemon) -> None:
    reasons = not_ready_reasons(daemon)
    assert set(daemon.not_ready_because()) < set(reasons)
    assert "no lease: etcd has not answered yet" in reasons
    daemon.waiting = "there is no network config"
    reasons = not_ready_reasons(daemon)
    assert "there is no network config" in reasons
    assert "no lease: there is no network config" in reasons


def test_the_worst_of_days_keeps_within_the_screen(status: dict[str, Any]) -> None:
    worker = {**status["workers"][0], "deaths": 12, "receive_drops": 9, "alive": False}
    status["workers"] = [{**worker, "cpu": cpu} for cpu in range(128)]
    status["drops"] = {drop.name.lower(): 10**9 + drop for drop in Drop if drop}
    status["drop_rates"] = dict.fromkeys(status["drops"], 123_456.0)
    status["rates"] = dict.fromkeys(status["totals"], 9990000000.0)
    status["device_drops"] = 10**7
    refused = "failed its test: the kernel cut the message wrongly"
    status["offloads"] = dict.fromkeys(status["offloads"], refused)
    status["path_mtus"] = {f"192.0.2.{last}": 1280 for last in range(200)}
    status["routes"]["ignored"] = {reason.value: 3 for reason in Reason}
    status["etcd"]["error"] = "no etcd answers at http://192.0.2.1:2379 (Connection refused)"
    text = shown(status)
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 56, text
    assert "120 more" in text
    assert "196 more" in words_of(text)
    assert words_of(text).count(refused) == len(status["offloads"])
    assert "(socket)" not in text, "the eight most frequent reasons come first"


def test_a_bad_day_fits_40_lines(status: dict[str, Any]) -> None:
    worker = status["workers"][0]
    status["workers"] = [{**worker, "cpu": cpu} for cpu in range(64)]
    status["offloads"] |= dict.fromkeys(("tun_uso", "tunnel_gso"), "refused by this kernel")
    status["drops"] |= {"no_route": 5, "unknown_vtep": 7, "spoofed_source": 9, "tun_down": 1}
    status["etcd"]["error"] = "no etcd answers at http://192.0.2.1:2379 (Connection refused)"
    text = shown(status)
    assert len(text.splitlines()) <= 40, text


def test_what_was_lost_before_the_workers_is_shown(status: dict[str, Any]) -> None:
    status["device_drops"], status["workers"][0]["receive_drops"] = 3, 5
    status["drops"]["no_route"] = 4
    lines = shown(status).splitlines()
    found = [line.split()[:2] for line in lines if line.startswith(("(", "no_route"))]
    assert found == [["(socket)", "5"], ["no_route", "4"], ["(device)", "3"]]


def test_every_part_that_is_missing_is_named_and_since_when(
    idle_forwarder: Path, status: dict[str, Any]
) -> None:
    without_control = gather(idle_forwarder)
    text = words_of(shown(without_control))
    assert "control missing for" in text
    assert "no loden control is running" in text
    assert "offloads in use: tun_tso" in text
    for name in ("totals", "workers", "offloads"):
        del status[name]
    status["forwarder"] = {"pid": None, "error": "no forwarder is running", "gone_s": 200.0}
    assert "forwarder missing for 3 min" in words_of(shown(status))
