"""Runs for the tests of what is made of them: two contenders, or three, on a road."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from perf.measure import (
    QUICK,
    Curve,
    Measure,
    Outcome,
    Point,
    Reading,
    Scene,
    Site,
    Status,
    Target,
)
from perf.record import Run
from perf.results import Results

NAMES = ("loden", "kernel", "other")
SLOPE = Curve("slope", "speed on slopes", "slope", "%")
ABOUT: dict[str, Any] = {
    "begun": "2026-01-02T03:04:05+00:00",
    "repeat": 3,
    "seconds": 12.3,
    "quick": False,
    "effort": asdict(QUICK),
    "machine": {
        "cpu": "A CPU",
        "cpus": 2,
        "memory_gb": 8.2,
        "load_before": 0.1,
        "kernel": "6.18",
        "architecture": "x86_64",
        "python": "3.11.7",
        "packages": {"loden": "0.1.0", "absent": None},
        "settings": {"default qdisc": "fq", "SMT": None},
        "tools": {"iperf3": "iperf 3.12"},
        "commit": "0123456789abcdef",
        "uncommitted_changes": True,
    },
    "sites": {
        "road": {
            "kernel": {"version": "9", "offloads": {"gears": True, "wings": False}},
            "loden": {"loden": {"gearbox": "on"}},
        }
    },
}


def never(*_: Any) -> Any:
    raise AssertionError("not to be taken")


def speed(
    *targets: Target,
    name: str = "speed",
    slopes: Sequence[float] = (),
    more_is_better: bool = True,
    unit: str = "m/s",
    reference: str | None = "kernel",
) -> Measure[Site]:
    return Measure(
        name=name,
        title=name,
        unit=unit,
        contenders=NAMES,
        take=never,
        seconds=lambda effort: 1.0,
        more_is_better=more_is_better,
        reference=reference,
        targets=targets,
        points=tuple(Point(SLOPE, slope) for slope in slopes),
    )


def measured(
    contender: str,
    *values: float | None,
    measure: str = "speed",
    details: Mapping[str, float] | None = None,
) -> list[Outcome]:
    """One per round; None: it failed."""
    return [
        Outcome(measure, contender, number, Status.FAILED, None, "it burns")
        if value is None
        else Outcome(
            measure, contender, number, Status.MEASURED, Reading(value, details or {"lost": number})
        )
        for number, value in enumerate(values)
    ]


def skipped(contender: str, why_not: str, measure: str = "speed") -> list[Outcome]:
    return [Outcome(measure, contender, 0, Status.SKIPPED, None, why_not)]


def run_of(outcomes: Sequence[Outcome], *measures: Measure[Site], **about: Any) -> Run:
    """All measures in one scene; without any: the one called speed."""
    scene = Scene[Site]("road", "a road", dict.fromkeys(NAMES, never), measures or (speed(),))
    return Run(
        {**ABOUT, **about},
        [scene],
        Results(outcomes),
        {"loden": "one that we made", "kernel": "the usual one"},
    )
