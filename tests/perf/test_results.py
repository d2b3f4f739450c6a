"""Medians, spreads and ratios are what they are called, and a failure is never a figure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf.measure import Curve, Point, Scene, Site, Status, Target
from perf.results import Results, Spread, curves_of
from tests.perf.runs import measured, speed


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
    scenes = [Scene[Site]("road", "", {}, (steep, flat)), Scene[Site]("up", "", {}, (hill,))]

    assert curves_of(scenes) == {slope: [(0, flat), (5, hill), (20, steep)], wind: [(0, flat)]}


def test_details_are_medians_too() -> None:
    assert Results(measured("ours", 1, 1, 1)).details("speed", "ours") == {"lost": 1}
