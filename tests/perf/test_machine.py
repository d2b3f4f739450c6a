"""Results say where they come from."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from perf.machine import describe_machine


def test_description_is_plain_and_complete() -> None:
    described = json.loads(json.dumps(describe_machine()))

    assert described["kernel"] == platform.release()
    assert described["cpus"] >= 1
    assert described["memory_gb"] > 0
    assert described["packages"]["numba"]
    assert described["cpu"]
    assert int(described["settings"]["rmem_max"]) > 0
    hugepages = described["settings"]["transparent hugepages"]
    assert hugepages in (None, "always", "madvise", "never")


def test_what_is_not_installed_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    described = describe_machine()

    assert described["commit"] is None
    assert described["tools"] == {"iperf3": None, "ip": None, "ethtool": None}
