"""Student's t, Welch's test and Holm's procedure give what the tables and their authors say."""

from __future__ import annotations

import random

import pytest

from perf.significance import adjusted, change_between, t_beyond, t_tail


@pytest.mark.parametrize(
    ("t", "freedom", "tail"),
    [  # from the tables of Student's t
        (0.0, 5, 0.5),
        (1.0, 1, 0.25),
        (12.706, 1, 0.025),
        (2.776, 4, 0.025),
        (2.306, 8, 0.025),
        (3.355, 8, 0.005),
        (5.041, 8, 0.0005),
        (1.972, 200, 0.025),
    ],
)
def test_tail_is_that_of_the_tables(t: float, freedom: float, tail: float) -> None:
    assert t_tail(t, freedom) == pytest.approx(tail, rel=2e-3)
    if tail < 0.5:
        assert t_beyond(tail, freedom) == pytest.approx(t, rel=2e-3)


def test_change_is_a_factor_with_an_interval() -> None:
    change = change_between([100, 101, 99, 100], [50, 50.5, 49.5, 50])
    assert change is not None
    assert change.factor == pytest.approx(0.5, rel=1e-3)
    assert 0.48 < change.low < 0.5 < change.high < 0.52
    assert change.p < 1e-6


def test_change_is_the_same_in_both_directions() -> None:
    old, new = [9.0, 10, 11, 12], [7.0, 10, 10, 9]
    there, back = change_between(old, new), change_between(new, old)
    assert there is not None
    assert back is not None
    assert there.factor * back.factor == pytest.approx(1)
    assert there.p == pytest.approx(back.p)
    assert there.low == pytest.approx(1 / back.high)


def test_readings_that_never_differ_are_compared_as_they_are() -> None:
    same, other = change_between([3, 3, 3], [3, 3, 3]), change_between([3, 3, 3], [4, 4, 4])
    assert same is not None
    assert other is not None
    assert (same.factor, same.p) == (1, 1)
    assert other.p == 0


@pytest.mark.parametrize(
    ("old", "new"), [([1, 2], [1, 2, 3]), ([1, 2, 3], []), ([0, 1, 2], [1, 1, 1])]
)
def test_what_cannot_tell_tells_nothing(old: list[float], new: list[float]) -> None:
    assert change_between(old, new) is None


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    dice = random.Random(1)
    held = 0
    for _ in range(400):
        old = [100 * dice.lognormvariate(0, 0.1) for _ in range(5)]
        new = [80 * dice.lognormvariate(0, 0.03) for _ in range(4)]
        change = change_between(old, new)
        assert change is not None
        held += change.low <= 0.8 <= change.high
    assert 0.92 <= held / 400 <= 0.98


def test_many_comparisons_ask_for_more_of_each() -> None:
    assert adjusted([0.01]) == [0.01]
    assert adjusted([0.04, 0.01, 0.03]) == [0.06, 0.03, 0.06]
    assert adjusted([0.5, 0.9]) == [1.0, 1.0]
    assert adjusted([]) == []
