"""Medians, spreads and ratios are what they are called, and a failure is never a figure."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from perf.measure import (
    QUICK,
    Curve,
    Effort,
    Measure,
    Outcome,
    Point,
    Reading,
    Scene,
    Status,
    Target,
)
from perf.measure import Site as AnySite
from perf.results import Results, Spread, curves_of, to_json


def measured(contender: str, *values: float | None) -> list[Outcome]:
    """One per round; None: it failed."""
    return [
        Outcome("speed", contender, number, Status.FAILED, None, "it burns")
        if value is None
        else Outcome("speed", contender, number, Status.MEASURED, Reading(value, {"lost": number}))
        for number, value in enumerate(values)
    ]


def never(site: AnySite, effort: Effort) -> Reading:
    raise AssertionError("not to be taken")


def speed(*targets: Target, more_is_better: bool = True) -> Measure[AnySite]:
    return Measure(
        "speed",
        "speed",
        "m/s",
        ("ours", "theirs"),
        never,
        lambda effort: 1.0,
        more_is_better,
        "theirs",
        targets,
    )


def test_median_is_the_median() -> None:
    assert Results(measured("ours", 1, 2, 100)).spread("speed", "ours") == Spread(2, 1, 100, 3)


def test_failed_rounds_do_not_count_as_zero() -> None:
    results = Results(measured("ours", 4, None, 6))

    assert results.spread("speed", "ours") == Spread(5, 4, 6, 2)
    assert results.failures() == 1
    assert results.reasons("speed", "ours", Status.FAILED) == ["it burns"]


def test_nothing_measured_has_no_figure() -> None:
    results = Results(measured("ours", None, None) + measured("theirs", 1, 2))
    target = Target("ours", 0.5, "theirs")

    assert results.spread("speed", "ours") is None
    assert results.ratio("speed", "ours", "theirs") is None
    assert results.is_met(speed(target), target) is None


def test_ratio_is_taken_within_each_round() -> None:
    # The machine was ten times slower in the second round; both suffered alike.
    results = Results(measured("ours", 100, 10, 90) + measured("theirs", 50, 5, 90))
    assert results.ratio("speed", "ours", "theirs") == Spread(2, 1, 2, 3)


def test_ratio_leaves_out_rounds_that_lack_one() -> None:
    results = Results(measured("ours", 10, None, 30) + measured("theirs", None, 5, 10))
    assert results.ratio("speed", "ours", "theirs") == Spread(3, 3, 3, 1)


@pytest.mark.parametrize(
    ("target", "more_is_better", "met"),
    [
        (Target("ours", 2.0, "theirs"), True, True),
        (Target("ours", 2.1, "theirs"), True, False),
        (Target("ours", 2.0, "theirs"), False, True),
        (Target("ours", 1.9, "theirs"), False, False),
        (Target("ours", 10), True, True),
        (Target("ours", 11), True, False),
        (Target("ours", 9), False, False),
    ],
)
def test_target_is_met_by_the_median(target: Target, more_is_better: bool, met: bool) -> None:
    results = Results(measured("ours", 10, 10, 1) + measured("theirs", 5, 5, 5))
    measure = speed(target, more_is_better=more_is_better)
    assert results.is_met(measure, target) is met


def test_target_may_be_set_against_another_measure() -> None:
    uphill = [replace(outcome, measure="uphill") for outcome in measured("ours", 3, 2)]
    results = Results(measured("ours", 4, 4) + uphill)
    measure, target = replace(speed(), name="uphill"), Target("ours", 0.6, "ours", of="speed")

    assert results.ratio("uphill", "ours", "ours", of="speed") == Spread(0.625, 0.5, 0.75, 2)
    assert results.is_met(measure, target) is True


def test_curve_has_its_measures_in_order() -> None:
    slope, wind = Curve("slope", "speed on slopes", "slope", "%"), Curve("wind", "in wind", "wind")
    flat = replace(speed(), name="flat", points=(Point(slope, 0), Point(wind, 0)))
    steep = replace(speed(), name="steep", points=(Point(slope, 20),))
    hill = replace(speed(), name="hill", points=(Point(slope, 5),))
    scenes = [Scene[AnySite]("road", "", {}, (steep, flat)), Scene[AnySite]("up", "", {}, (hill,))]

    assert curves_of(scenes) == {slope: [(0, flat), (5, hill), (20, steep)], wind: [(0, flat)]}
    written = to_json(Results([]), scenes, QUICK, {})
    assert written["curves"]["slope"] == {
        "title": "speed on slopes",
        "x_name": "slope",
        "x_unit": "%",
    }
    assert written["measures"]["flat"]["points"] == [
        {"curve": "slope", "x": 0},
        {"curve": "wind", "x": 0},
    ]


def test_details_are_medians_too() -> None:
    assert Results(measured("ours", 1, 1, 1)).details("speed", "ours") == {"lost": 1}


def test_json_has_every_reading_and_the_reasons_for_the_missing() -> None:
    target = Target("ours", 2.0, "theirs")
    scene = Scene[AnySite]("road", "a road", {}, (speed(target),))
    results = Results(measured("ours", 4, None) + measured("theirs", 2, 2))

    written = json.loads(json.dumps(to_json(results, [scene], QUICK, {"machine": {"cpus": 2}})))

    assert written["machine"] == {"cpus": 2}
    assert written["effort"]["tcp_s"] == 1
    assert written["measures"]["speed"]["targets"] == [
        {"contender": "ours", "limit": 2.0, "than": "theirs", "of": None, "met": True}
    ]
    first, second, *_ = written["outcomes"]
    assert (first["status"], first["value"], first["details"]) == ("measured", 4, {"lost": 0})
    assert (second["status"], second["value"], second["why_not"]) == ("failed", None, "it burns")
