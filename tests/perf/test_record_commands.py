"""The commands over kept results: what they write, refuse, and tell a CI by their exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from perf import record
from perf.__main__ import command
from tests.perf.runs import ABOUT, measured, run_of, speed


def keep(path: Path, *values: float | None, **about: Any) -> str:
    outcomes = measured("loden", *values) + measured("kernel", *[2.0] * len(values))
    record.write(run_of(outcomes, speed(), **about), path)
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_report_is_made_again_from_the_results(tmp_path: Path) -> None:
    path = keep(tmp_path / "results.json", 1, 2, 3)
    result = run("report", path)

    assert result.exit_code == 0
    assert "| speed (m/s) | loden" in (tmp_path / "report.md").read_text()
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert f"written: {tmp_path / 'report.html'}\n" in result.output


@pytest.mark.parametrize(
    ("new", "status", "told"),
    [
        ((4.0, 4.1, 3.9), 0, "0 worse, 1 unchanged"),
        ((2.0, 2.1, 1.9), 1, "**1 worse**"),
        ((8.0, 8.1, 7.9), 0, "1 better"),
        ((None, None, None), 1, "**1 no longer measured**"),
    ],
)
def test_exit_status_tells_whether_something_got_worse(
    tmp_path: Path, new: tuple[float | None, ...], status: int, told: str
) -> None:
    old_path = keep(tmp_path / "old.json", 4.0, 4.05, 3.95)
    result = run("compare", old_path, keep(tmp_path / "new.json", *new))

    assert (result.exit_code, told in result.output) == (status, True), result.output


def test_other_machine_is_refused_unless_forced(tmp_path: Path) -> None:
    old = keep(tmp_path / "old.json", 4, 4, 4)
    new = keep(tmp_path / "new.json", 4, 4, 4, machine={**ABOUT["machine"], "cpus": 64})
    refused, forced = run("compare", old, new), run("compare", "--force", old, new)

    assert refused.exit_code == 2
    assert "different machines or settings (--force compares them):\n  cpus: 2 → 64" in (
        refused.output
    )
    assert forced.exit_code == 0
    assert "**not the same machine or settings**: cpus: 2 → 64" in forced.output


def test_what_is_no_run_or_has_nothing_in_common_is_refused(tmp_path: Path) -> None:
    good, other = keep(tmp_path / "good.json", 1, 1, 1), tmp_path / "other.json"
    other.write_text("{}")
    assert run("compare", good, str(other)).exit_code == 2

    record.write(run_of(measured("loden", 1, measure="else"), speed(name="else")), other)
    result = run("compare", good, str(other))
    assert (result.exit_code, result.output) == (
        2,
        "Error: the two runs have no figure of loden in common\n",
    )
