"""Medians, spreads and ratios are what they are called, and a failure is never a figure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf.measure import Curve, Point, Scene, Site, Status, Target
from perf.results import Results, Spread, curves_of
from tests.perf.runs import measured, speed


def test_median_is_the_median() -> None:
    assert Results(measured("loden", 1, 2, 100)).spread("speed", "loden") == Spread(2, 1, 100, 3)


def test_failed_rounds_do_not_count_as_zero() -> None:
    results = Results(measured("loden", 4, None, 6))

    assert results.spread("speed", "loden") == Spread(5, 4, 6, 2)
    assert results.failures() == 1
    assert results.reasons("speed", "loden", Status.FAILED) == ["it burns"]


def test_nothing_measured_has_no_figure() -> None:
    results = Results(measured("loden", None, None) + measured("kernel", 1, 2))
    target = Target("loden", 0.5, "kernel")

    assert results.spread("speed", "loden") is None
    assert results.ratio("speed", "loden", "kernel") is None
    assert results.is_met(speed(target), target) is None


def test_ratio_is_taken_within_each_round() -> None:
    # The machine was ten times slower in the second round; both suffered alike.
    results = Results(measured("loden", 100, 10, 90) + measured("kernel", 50, 5, 90))
    assert results.ratio("speed", "loden", "kernel") == Spread(2, 1, 2, 3)


def test_ratio_leaves_out_rounds_that_lack_one() -> None:
    results = Results(measured("loden", 10, None, 30) + measured("kernel", None, 5, 10))
    assert results.ratio("speed", "loden", "kernel") == Spread(3, 3, 3, 1)


@pytest.mark.parametrize(
    ("target", "more_is_better", "met"),
    [
        (Target("loden", 2.0, "kernel"), True, True),
        (Target("loden", 2.1, "kernel"), True, False),
        (Target("loden", 2.0, "kernel"), False, True),
        (Target("loden", 1.9, "kernel"), False, False),
        (Target("loden", 10), True, True),
        (Target("loden", 11), True, False),
        (Target("loden", 9), False, False),
    ],
)
def test_target_is_met_by_the_median(target: Target, more_is_better: bool, met: bool) -> None:
    results = Results(measured("loden", 10, 10, 1) + measured("kernel", 5, 5, 5))
    measure = speed(target, more_is_better=more_is_better)
    assert results.is_met(measure, target) is met


def test_target_may_be_set_against_another_measure() -> None:
    uphill = [replace(outcome, measure="uphill") for outcome in measured("loden", 3, 2)]
    results = Results(measured("loden", 4, 4) + uphill)
    measure, target = replace(speed(), name="uphill"), Target("loden", 0.6, "loden", of="speed")

    assert results.ratio("uphill", "loden", "loden", of="speed") == Spread(0.625, 0.5, 0.75, 2)
    assert results.is_met(measure, target) is True


def test_curve_has_its_measures_in_order() -> None:
    slope, wind = Curve("slope", "speed on slopes", "slope", "%"), Curve("wind", "in wind", "wind")
    flat = replace(speed(), name="flat", points=(Point(slope, 0), Point(wind, 0)))
    steep = replace(speed(), name="steep", points=(Point(slope, 20),))
    hill = replace(speed(), name="hill", points=(Point(slope, 5),))
    scenes = [Scene[Site]("road", "", {}, (steep, flat)), Scene[Site]("up", "", {}, (hill,))]

    assert curves_of(scenes) == {slope: [(0, flat), (5, hill), (20, steep)], wind: [(0, flat)]}


def test_details_are_medians_too() -> None:
    assert Results(measured("loden", 1, 1, 1)).details("speed", "loden") == {"lost": 1}
