"""The measurement of scale, tiny: it measures, and its numbers can be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from perf.nodes import PACKAGES_DIR
from perf.scale import MEMORY_TARGET_MB, lease_of, percentile

SCALE = [sys.executable, "-m", "perf.scale"]


@pytest.mark.netns
@pytest.mark.etcd
def test_a_small_cluster_is_measured(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = subprocess.run(
        [*SCALE, "--nodes", "200", "--quick", "--json", str(results)],
        cwd=PACKAGES_DIR,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert "200 nodes" in done.stdout
    found = json.loads(results.read_text())
    (measured,) = found["measured"]
    assert measured["nodes"] == 200
    assert 0 < measured["list_s"] < measured["cold_start_s"] < 60
    assert 0 < measured["single_p50_ms"] <= measured["single_p99_ms"]
    assert 0 < measured["pss_mb"] <= measured["rss_mb"] < MEMORY_TARGET_MB
    assert measured["idle_requests_per_s"] < 5
    assert found["fan_out"]["cpu_us_per_change"] > 0


@pytest.mark.parametrize("counts", ["0", "70000", "many", "1000,"])
def test_impossible_numbers_of_nodes_are_refused(counts: str) -> None:
    done = subprocess.run(
        [*SCALE, "--nodes", counts], cwd=PACKAGES_DIR, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "numbers from 20 to 65000" in done.stderr


def test_every_simulated_lease_is_another_and_each_version_too() -> None:
    assert len({lease_of(number)[0] for number in range(2000)}) == 2000
    assert len({lease_of(7, version)[1] for version in range(2000)}) == 2000


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.99) == 99
    assert percentile(values, 0.5) == 50
    assert percentile([3.0], 0.99) == 3
