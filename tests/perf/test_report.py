"""The report shows each figure with its spread, ratio and target, and each failure as such."""

from __future__ import annotations

from typing import Any

from perf.measure import Outcome, Target
from perf.report import to_markdown
from tests.perf.runs import measured, run_of, skipped, speed

TARGETS = (Target("loden", 2.0, "kernel"), Target("other", 3.0, "kernel"))


def report_of(outcomes: list[Outcome], **about: Any) -> str:
    return to_markdown(run_of(outcomes, speed(*TARGETS), **about))


def outcomes(contender: str, *values: float) -> list[Outcome]:
    return measured(contender, *values, details={"loss": 0.0005})


def cells_of(report: str, contender: str) -> list[str]:
    (line,) = (line for line in report.splitlines() if f"| {contender} " in line)
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_row_has_median_spread_ratio_and_verdict() -> None:
    report = report_of(outcomes("loden", 4, 6, 5) + outcomes("kernel", 2, 2, 2))

    assert cells_of(report, "loden") == [
        "speed (m/s)",
        "loden",
        "5",
        "4–6",
        "2.50 × kernel (2.00–3.00)",
        "≥ 2 × kernel: met",
        "loss 0.050%",
    ]
    assert cells_of(report, "kernel")[:5] == ["", "kernel", "2", "2–2", ""]


def test_missed_target_stands_out() -> None:
    report = report_of(outcomes("loden", 3) + outcomes("kernel", 2))
    assert cells_of(report, "loden")[3:6] == [
        "one round",
        "1.50 × kernel (one round)",
        "≥ 2 × kernel: **missed**",
    ]


def test_failure_has_a_reason_and_no_figure() -> None:
    failed = measured("other", None, None)
    lines = report_of(failed + skipped("loden", "not | here")).replace("\\|", "/")

    assert cells_of(lines, "other")[2:] == [
        "",
        "",
        "",
        "≥ 3 × kernel: **no figure**",
        "**failed × 2**: it burns",
    ]
    assert cells_of(lines, "loden")[6] == "**skipped × 1**: not / here"


def test_long_reason_is_shortened() -> None:
    reason = "it ended with 1:\n  Traceback\n  File x\n  OSError: no room"
    report = report_of(skipped("other", reason))
    assert cells_of(report, "other")[6] == "**skipped × 1**: it ended with 1: … OSError: no room"


def test_machine_and_conditions_are_told() -> None:
    report = report_of([])
    for told in ("2 CPUs: A CPU", "Linux 6.18", "commit 0123456789ab with uncommitted changes"):
        assert told in report
    for told in ("- default qdisc fq\n", "- targets: 0 met, 0 missed, 2 without a figure\n"):
        assert told in report
    assert "--quick" not in report
    assert "--quick" in report_of([], quick=True)
    assert "offloads on in `road`: gears\n" in report_of([])


def test_curve_has_a_row_per_contender_and_a_column_per_point() -> None:
    outcomes = [
        *measured("loden", 5, 6, 7, measure="steep"),
        *measured("loden", 9, 9, 9, measure="flat"),
        *measured("kernel", None, measure="steep"),
        *measured("kernel", 8, measure="flat"),
    ]
    measures = (speed(name="steep", slopes=(1000,)), speed(name="flat", slopes=(0.5,)))
    report = to_markdown(run_of(outcomes, *measures))

    assert "## Speed on slopes\n" in report
    heading, _, loden, kernel = (line for line in report.splitlines() if line.startswith("| "))
    assert [cell.strip() for cell in heading.split("|")[1:-1]] == [
        "m/s; slope (%) →",
        "0.5",
        "1,000",
    ]
    assert [cell.strip() for cell in loden.split("|")[1:-1]] == ["loden", "9 (9–9)", "6 (5–7)"]
    assert [cell.strip() for cell in kernel.split("|")[1:-1]] == ["kernel", "8", "**failed**"]
    assert "- slope, kernel: **failed**: it burns\n" in report


def test_contenders_that_had_a_turn_are_explained_and_the_mtu_is_told() -> None:
    sites = {"road": {"kernel": {"pod MTU": 1440, "version": "7"}, "loden": {"pod MTU": 1440}}}
    report = report_of(outcomes("kernel", 2), sites=sites)

    assert "- `kernel`: the usual one (7)\n" in report
    assert "one that we made" not in report
    assert report.count("MTU of all pods, whatever the contender: 1440") == 1


def test_settings_of_loden_are_told() -> None:
    assert "- `loden`: one that we made; gearbox: on\n" in report_of(outcomes("loden", 2))
