"""The metrics as Prometheus reads them, by its own client's parser, and their conventions."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from control.metric_families import CONTROL, FORWARDER, NODE, PEERS, Family
from control.metrics import NodeCollector, families_of, metrics_page
from control.status import gather
from forwarder.counters import BUCKETS, Drop

TABLES = (*NODE, *CONTROL, *FORWARDER, *PEERS)
BASE_UNITS = ("seconds", "bytes", "packets", "datagrams")


def parse(text: str) -> dict[str, Metric]:
    """By name as exposed."""
    families = text_string_to_metric_families(text)
    return {f.name + ("_total" if f.type == "counter" else ""): f for f in families}


def exposed(status: dict[str, Any]) -> dict[str, Metric]:
    class Found(NodeCollector):
        def collect(self) -> Any:
            return families_of(status)

    registry = CollectorRegistry()
    registry.register(Found(Path("unused"), True))
    return parse(generate_latest(registry).decode())


@pytest.fixture
def status(idle_forwarder: Path) -> dict[str, Any]:
    return gather(idle_forwarder, with_peers=True)


@pytest.mark.parametrize("family", TABLES, ids=lambda family: str(family.name))
def test_names_and_units_follow_prometheus_conventions(family: Family) -> None:
    assert re.fullmatch(r"loden_[a-z]+(_[a-z]+)*", family.name)
    assert family.help.endswith(".")
    words = family.name.removesuffix("_total").split("_")
    assert not {"ms", "milliseconds", "kilobytes", "bits", "percent", "count"} & set(words)
    # A unit is the last word; `total` and nothing else comes after it.
    assert not set(BASE_UNITS) & set(words[1:-1]), "a unit belongs at the end"
    for label in family.labels:
        assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", label)
        assert label not in ("le", "quantile", "job", "instance"), "these have another meaning"


def test_no_name_is_given_twice() -> None:
    names = [family.name for family in TABLES]
    assert len(set(names)) == len(names)


def test_every_counter_of_a_worker_is_exposed(status: dict[str, Any]) -> None:
    values = count(1_000_001)
    worker = status["workers"][0]
    for part in ("totals", "drops"):
        worker[part] = {name: next(values) for name in worker[part]}
    found = {
        int(sample.value)
        for family in exposed(status).values()
        for sample in family.samples
        if sample.labels.get("cpu") == str(worker["cpu"])
    }
    for name, value in (worker["totals"] | worker["drops"]).items():
        assert value in found, name


def test_batch_sizes_are_a_histogram(status: dict[str, Any]) -> None:
    worker = status["workers"][0]
    worker["batches"] = {"out": [3, 1, *[0] * (BUCKETS - 3), 2], "in": [0] * BUCKETS}
    worker["totals"] |= {"out_packets": 4000, "in_segments": 7}
    worker["drops"] |= {"no_route": 5, "spoofed_source": 100}
    samples = {
        (sample.name.removeprefix("loden_batch_packets_"), sample.labels.get("le")): sample.value
        for sample in exposed(status)["loden_batch_packets"].samples
        if sample.labels["cpu"] == str(worker["cpu"]) and sample.labels["direction"] == "out"
    }
    assert samples["bucket", "1.0"] == 3
    assert samples["bucket", "2.0"] == samples["bucket", "1024.0"] == 4
    assert samples["bucket", "+Inf"] == samples["count", None] == 6
    assert samples["sum", None] == 4005


def test_a_peer_has_four_series(status: dict[str, Any]) -> None:
    counts = {"out_packets": 1, "out_bytes": 2, "in_packets": 3, "in_bytes": 4}
    status["peers"] = [{"address": "192.0.2.1", "mac": "02:00:00:00:00:01", **counts}]
    found = exposed(status)
    samples = {
        f"{sample.labels['direction']}_{what}": sample.value
        for what in ("packets", "bytes")
        for sample in found[f"loden_peer_{what}_total"].samples
        if (sample.labels["peer"], sample.labels["mac"]) == ("192.0.2.1", "02:00:00:00:00:01")
    }
    assert samples == counts


def test_peers_can_be_left_out(idle_forwarder: Path) -> None:
    without, with_peers = (parse(metrics_page(idle_forwarder, it)().text) for it in (False, True))
    assert with_peers.keys() - without.keys() == {family.name for family in PEERS}


def test_every_drop_reason_has_a_series_from_the_start(status: dict[str, Any]) -> None:
    samples = exposed(status)["loden_dropped_packets_total"].samples
    assert {sample.labels["reason"] for sample in samples} == {d.name.lower() for d in Drop if d}


def test_half_a_node_says_which_half(idle_forwarder: Path) -> None:
    found = parse(metrics_page(idle_forwarder, True)().text)
    ups = {part: found[f"loden_{part}_up"].samples[0].value for part in ("control", "forwarder")}
    assert ups == {"control": 0, "forwarder": 1}
    assert "process_cpu_seconds_total" in found
    assert "loden_etcd_state" not in found


def test_node_that_does_not_answer_at_all_is_down(tmp_path: Path) -> None:
    found = parse(metrics_page(tmp_path, True)().text)
    ups = [found[f"loden_{part}_up"].samples[0].value for part in ("control", "forwarder")]
    assert ups == [0, 0]
