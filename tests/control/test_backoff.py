"""Waits between attempts."""

from __future__ import annotations

from control.backoff import Backoff


def test_ceiling_doubles_up_to_the_limit_and_starts_over() -> None:
    longest = Backoff(0.1, 1.0, uniform=lambda low, high: high)
    assert [round(longest.next_s(), 1) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    longest.reset()
    assert longest.next_s() == 0.1


def test_waits_are_spread_over_the_whole_range_but_never_nothing() -> None:
    asked: list[tuple[float, float]] = []

    def lowest(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    backoff = Backoff(0.1, 5.0, uniform=lowest)
    assert [backoff.next_s() for _ in range(3)] == [0.05, 0.05, 0.05]
    assert asked == [(0, 0.1), (0, 0.2), (0, 0.4)]
