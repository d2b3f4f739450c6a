"""The report shows each figure with its spread, ratio and target, and each failure as such."""

from __future__ import annotations

import pytest

from perf.measure import Effort, Measure, Outcome, Reading, Scene, Site, Status, Target
from perf.report import figure, table, to_markdown
from perf.results import Results

ABOUT = {
    "begun": "2026-01-02T03:04:05+00:00",
    "repeat": 3,
    "seconds": 12.3,
    "quick": False,
    "machine": {
        "cpu": "A CPU",
        "cpus": 2,
        "load_before": 0.1,
        "kernel": "6.18",
        "architecture": "x86_64",
        "python": "3.11.7",
        "packages": {"loden": "0.1.0"},
        "commit": "0123456789abcdef",
        "uncommitted_changes": True,
    },
}


def never(site: Site, effort: Effort) -> Reading:
    raise AssertionError("not to be taken")


def report_of(outcomes: list[Outcome], **about: object) -> str:
    names = ("ours", "theirs", "other")
    targets = (Target("ours", 2.0, "theirs"), Target("other", 3.0, "theirs"))
    measure = Measure[Site](
        "speed", "speed", "m/s", names, never, lambda e: 1.0, True, "theirs", targets
    )
    scene = Scene[Site]("road", "a road", dict.fromkeys(names, never), (measure,))  # type: ignore[arg-type]
    return to_markdown(Results(outcomes), [scene], {**ABOUT, **about})


def outcomes(contender: str, *values: float) -> list[Outcome]:
    return [
        Outcome("speed", contender, number, Status.MEASURED, Reading(value, {"loss": 0.0005}))
        for number, value in enumerate(values)
    ]


def cells_of(report: str, contender: str) -> list[str]:
    (line,) = (line for line in report.splitlines() if f"| {contender} " in line)
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_row_has_median_spread_ratio_and_verdict() -> None:
    report = report_of(outcomes("ours", 4, 6, 5) + outcomes("theirs", 2, 2, 2))

    assert cells_of(report, "ours") == [
        "speed (m/s)",
        "ours",
        "5",
        "4–6",
        "2.50 × theirs (2–3)",
        "≥ 2 × theirs: met",
        "loss 0.050%",
    ]
    assert cells_of(report, "theirs")[:5] == ["", "theirs", "2", "2–2", ""]


def test_missed_target_stands_out() -> None:
    report = report_of(outcomes("ours", 3) + outcomes("theirs", 2))
    assert cells_of(report, "ours")[3:6] == [
        "one round",
        "1.50 × theirs (one round)",
        "≥ 2 × theirs: **missed**",
    ]


def test_failure_has_a_reason_and_no_figure() -> None:
    failed = [Outcome("speed", "other", n, Status.FAILED, None, "it | burns") for n in range(2)]
    skipped = [Outcome("speed", "ours", 0, Status.SKIPPED, None, "not here")]
    lines = report_of(failed + skipped).replace("\\|", "/")

    assert cells_of(lines, "other")[2:] == [
        "",
        "",
        "",
        "≥ 3 × theirs: **no figure**",
        "**failed × 2**: it / burns",
    ]
    assert cells_of(lines, "ours")[6] == "**skipped × 1**: not here"


def test_long_reason_is_shortened() -> None:
    reason = "it ended with 1:\n  Traceback\n  File x\n  OSError: no room"
    report = report_of([Outcome("speed", "other", 0, Status.FAILED, None, reason)])
    assert cells_of(report, "other")[6] == "**failed × 1**: it ended with 1: … OSError: no room"


def test_machine_and_conditions_are_told() -> None:
    report = report_of([])
    for told in ("2 CPUs: A CPU", "Linux 6.18", "commit 0123456789ab with uncommitted changes"):
        assert told in report
    assert "--quick" not in report
    assert "--quick" in report_of([], quick=True)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.2571, "0.257"), (12.34, "12.3"), (5.0, "5"), (123456.7, "123,457")]
)
def test_figures_have_three_digits(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_table_lines_up() -> None:
    lines = table(("a", "b", "c"), [("long", "1", "x"), ("long", "2", "y")]).splitlines()
    assert lines == [
        "| a    | b   | c   |",
        "| ---- | --- | --- |",
        "| long | 1   | x   |",
        "|      | 2   | y   |",
    ]
