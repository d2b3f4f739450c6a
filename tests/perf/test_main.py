"""`python -m perf` as a person runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from perf.__main__ import command
from perf.catalogue import CONTENDERS, MEASURES
from perf.namespace import list_namespaces

ROOT = Path(__file__).parents[2]


def start(temporary: Path, *options: str) -> subprocess.Popen[str]:
    """A benchmark with its files below `temporary`."""
    return subprocess.Popen(
        [sys.executable, "-m", "perf", "--quick", *options],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_nothing_is_left(process: subprocess.Popen[str], temporary: Path) -> None:
    assert list_namespaces(f"loden-{process.pid}-") == []
    assert list(temporary.iterdir()) == []


@pytest.mark.netns
def test_run_prints_a_report_and_writes_results(tmp_path: Path) -> None:
    temporary, folder = tmp_path / "temporary", tmp_path / "some" / "where"
    temporary.mkdir()
    options = ("--only", "latency", "--peers", "kernel", "--peers", "bare", "--repeat", "2")
    process = start(temporary, *options, "--output", str(folder))
    report, progress = process.communicate(timeout=120)

    assert process.returncode == 0, progress + report
    assert "| request and response, median (µs) | " in report
    assert "× kernel (" in report
    assert "round 2" in progress
    assert (folder / "report.md").read_text() == report
    assert f"written: {folder / 'report.html'}\n" in progress
    written = json.loads((folder / "results.json").read_text())
    assert [(o["contender"], o["round"]) for o in written["outcomes"]] == [
        ("bare", 0),
        ("kernel", 0),
        ("kernel", 1),
        ("bare", 1),
    ]
    assert {o["status"] for o in written["outcomes"]} == {"measured"}
    assert written["sites"]["offloads"]["kernel"]["offloads"]
    assert_nothing_is_left(process, temporary)


@pytest.mark.netns
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    output = ("--output", str(tmp_path / "results"))
    process = start(tmp_path, "--only", "tcp1", "--peers", "kernel", "--repeat", "100", *output)
    assert process.stderr
    for line in process.stderr:
        if "round 1" in line:
            break
    process.send_signal(signal.SIGINT)
    report, _ = process.communicate(timeout=60)

    assert (process.returncode, report) == (128 + signal.SIGINT, "")
    assert_nothing_is_left(process, tmp_path)


def test_list_names_every_measure_and_contender() -> None:
    result = CliRunner().invoke(command, ["--list"])

    assert result.exit_code == 0
    for name in (*(measure.name for measure in MEASURES), *CONTENDERS):
        assert f"  {name} " in result.output
    assert "target: loden ≥ 2 × kernel" in result.output


def test_quick_leaves_out_much_but_nothing_that_is_named() -> None:
    def listed(*options: str) -> str:
        return CliRunner().invoke(command, ["--list", *options]).output

    assert "udp1024" in listed()
    assert "udp1024" not in listed("--quick")
    assert "udp1024" in listed("--quick", "--only", "udp-size")
    assert "tcp4  " not in listed("--only", "udp-size")


@pytest.mark.parametrize("option", ["--only", "--peers"])
def test_unknown_name_is_refused_with_those_there_are(option: str) -> None:
    result = CliRunner().invoke(command, [option, "warp"])

    assert result.exit_code == 2
    assert "'warp' is not one of" in result.output


def test_measure_that_no_such_contender_has_is_said() -> None:
    result = CliRunner().invoke(command, ["--only", "idle", "--peers", "bare"])

    assert (result.exit_code, result.output) == (
        1,
        "Error: none of these contenders is measured so: see --list\n",
    )


def test_user_without_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(command, [])

    assert result.exit_code == 1
    assert "needs root" in result.output
