"""Whole nodes looked at: pages, metrics, screens, logs; while all is well, and while parts are out.

host0 ─ node 0, looked at ─┐
host1 ─ node 1 ────────────┤ wire
host2 ─ etcd ──────────────┘
"""

from __future__ import annotations

import http.client
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from control.cli import main
from control.metric_families import BATCH_NAME, CONTROL, FORWARDER, NODE, PEERS
from forwarder.counters import Drop
from perf.traffic import ping
from tests.netns.nodes import Cluster, LodenNode, SteadyPing, cluster_of, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

PORT = 9100
NOWHERE = "10.5.255.1"
"""In the network, and in no node's subnet (the last one is never given away that soon)."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_of(2, tmp_path_factory.mktemp("observing")) as cluster:
        cluster.init()
        for node in cluster.nodes:
            node.start("--healthz-port", str(PORT))
        yield cluster


@pytest.fixture
def node(running: Cluster) -> Iterator[LodenNode]:
    running.start(0, 1)
    yield running.nodes[0]
    print(running.logs())


def ask(node: LodenNode, path: str) -> tuple[int, str]:
    with node.host.entered():
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.status, answer.read().decode()
        connection.close()
    return said


def metrics(node: LodenNode) -> dict[str, Metric]:
    """By name as exposed."""
    families = text_string_to_metric_families(ask(node, "/metrics")[1])
    return {f.name + ("_total" if f.type == "counter" else ""): f for f in families}


def value(node: LodenNode, name: str, **labels: str) -> float:
    """The sum of the series with these labels."""
    samples = [s for s in metrics(node)[name].samples if labels.items() <= s.labels.items()]
    assert samples, f"{name} has no series with {labels}"
    return sum(sample.value for sample in samples)


def screen(node: LodenNode, *words: str) -> str:
    """What a command prints, in one line; and that its lines fit a terminal."""
    result = CliRunner().invoke(main, [*words, "--run-dir", str(node.run_dir)])
    assert max(map(len, result.output.splitlines())) <= 80
    assert len(result.output.splitlines()) <= 40
    return " ".join(result.output.split())


# ---- while all is well --------------------------------------------------------------------------


def test_metrics_are_those_that_are_documented(node: LodenNode) -> None:
    found = {name for name in metrics(node) if name.startswith("loden_")}
    tables = (*NODE, *CONTROL, *FORWARDER, *PEERS)
    assert found == {family.name for family in tables} | {BATCH_NAME}
    text = ask(node, "/metrics")[1]
    samples = re.findall(r"^(\w+(?:\{.*\})?) ", text, re.MULTILINE)
    assert len(set(samples)) == len(samples)
    assert "None" not in text


def test_metrics_tell_the_state_of_the_node(node: LodenNode) -> None:
    found = {
        name: {tuple(s.labels.values()): s.value for s in family.samples}
        for name, family in metrics(node).items()
    }
    assert found["loden_ready"] == found["loden_lease_held"] == {(): 1}
    assert found["loden_etcd_state"] == {("in_sync",): 1, ("resyncing",): 0, ("disconnected",): 0}
    assert found["loden_routes_age_seconds"] == {(): 0}
    assert found["loden_fib_routes"] == found["loden_rib_routes"] == {(): 2}
    assert 80_000 < found["loden_lease_remaining_seconds"][()] <= 86_400
    assert set(found["loden_worker_up"].values()) == {1}
    assert len(found["loden_worker_up"]) == len(os.sched_getaffinity(0))
    assert all(0 <= age < 5 for age in found["loden_worker_heartbeat_age_seconds"].values())
    assert all(size > 0 for size in found["loden_worker_resident_memory_bytes"].values())


def test_packets_are_counted_once_by_worker_by_peer_and_by_reason(
    node: LodenNode, running: Cluster
) -> None:
    other = running.nodes[1]
    address = str(other.host.address)

    def counted() -> dict[str, float]:
        return {
            "sent": value(node, "loden_packets_total", direction="out"),
            "to the peer": value(node, "loden_peer_packets_total", peer=address, direction="out"),
            "bytes": value(node, "loden_peer_bytes_total", peer=address, direction="in"),
            "dropped": value(node, "loden_dropped_packets_total", reason="no_route"),
        }

    before = counted()
    assert ping(node.pod(), other.pod().address, count=5, packet_bytes=500).received == 5
    node.pod().run(["ping", "-c", "1", "-W", "1", NOWHERE], check=False)
    expected = {"sent": 5.0, "to the peer": 5.0, "bytes": 2500.0, "dropped": 1.0}
    wait_for(
        lambda: {name: count - before[name] for name, count in counted().items()} == expected,
        f"{before} to grow by {expected}",
    )


def test_screens_show_the_traffic(node: LodenNode, running: Cluster) -> None:
    other = running.nodes[1]
    with SteadyPing(node.pod(), other.pod().address):
        status = screen(node, "status", "--interval", "0.5")
        top = screen(node, "top", "--once", "--interval", "0.5")
    assert f"subnet {node.subnet} of 10.5.0.0/16" in status
    assert "etcd in sync" in status
    assert "lease held, renewed, 24.0 h left" in status
    assert re.search(r"\ball [1-9]\d* ", status), "packets a second"
    assert re.search(rf"{other.host.address} [1-9]\d* .* [1-9]\d* ", top)
    routes = screen(node, "routes", str(other.pod().address))
    assert f"{other.subnet} remote {other.host.address} {other.mac} 1" in routes
    assert "1 of 2 routes; in sync with etcd" in routes


# ---- while parts are out ------------------------------------------------------------------------


def held(node: LodenNode) -> int:
    """Has nothing restarted until it goes on; the pid to let go on."""
    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)
    return node.process.pid


@pytest.mark.parametrize("part", ["control", "forwarder"])
def test_screen_says_what_is_missing_and_since_when(node: LodenNode, part: str) -> None:
    pid = held(node)
    try:
        node.kill(part)
        wait_for(lambda: not node.is_ready(), "it is noticed")
        text = screen(node, "status", "--interval", "0")
        assert re.search(rf"{part} missing for \d s", text)
        assert f"no {'loden ' if part == 'control' else ''}{part} is running" in text
        assert ("worker" in text) == (part == "control")
        assert ("etcd in sync" in text) == (part == "forwarder")
        if part == "control":
            assert "nobody keeps them up to date" in screen(node, "routes")
        else:
            status, reasons = ask(node, "/readyz")
            assert (status, ask(node, "/healthz")[0]) == (503, 200)
            assert "forwarder" in reasons
            assert value(node, "loden_forwarder_up") == value(node, "loden_ready") == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(node.is_ready, "ready again", 20)
    wait_for(lambda: ask(node, "/readyz") == (200, "ok\n"), "/readyz agrees")


def test_etcd_that_is_down_is_told_once_and_shown_until_it_is_back(
    node: LodenNode, running: Cluster
) -> None:
    begun = len(node.log())
    attempts = value(node, "loden_etcd_attempts_total")
    running.etcd.kill()
    try:
        wait_for(lambda: value(node, "loden_etcd_state", state="disconnected") == 1, "it is seen")
        enough = attempts + 5
        wait_for(lambda: value(node, "loden_etcd_attempts_total") >= enough, "more attempts", 60)
        assert value(node, "loden_routes_age_seconds") > 0
        assert value(node, "loden_ready") == 1, "packets flow on"
        text = screen(node, "status", "--interval", "0")
        assert re.search(r"etcd disconnected for \d+ s", text)
        assert re.search(r"routes 2, as etcd had them \d+ s ago", text)
    finally:
        running.etcd.start()
    wait_for(lambda: value(node, "loden_etcd_state", state="in_sync") == 1, "in sync again", 30)
    said = node.log()[begun:].splitlines()
    assert 2 <= len(said) <= 6, said
    assert all("control." in line for line in said), "one line an event, ours alone"


def test_drops_by_the_hundred_say_nothing_in_the_log(node: LodenNode) -> None:
    begun = len(node.log())
    before = value(node, "loden_dropped_packets_total", reason="no_route")
    node.pod().run(["ping", "-c", "200", "-f", "-W", "1", NOWHERE], check=False)
    wait_for(
        lambda: value(node, "loden_dropped_packets_total", reason="no_route") >= before + 200,
        "two hundred drops",
    )
    assert node.log()[begun:] == ""
    status = screen(node, "status", "--interval", "0")
    assert f"no_route {int(before) + 200:,} {Drop.NO_ROUTE.sentence}" in status


def test_log_has_one_line_an_event(node: LodenNode) -> None:
    lines = node.log().splitlines()
    assert lines
    assert [
        line for line in lines if not re.match(r"(\S+ )*(DEBUG|INFO|WARNING|ERROR) ", line)
    ] == []
    assert Path(node.log_path).stat().st_size < 50_000
