"""Counters made rates, and rates made readable."""

from __future__ import annotations

import pytest

from control.rates import counted, in_bits, in_time, per_second, scaled


def test_rates_are_differences_by_time() -> None:
    assert per_second({"a": 100, "b": 7}, {"a": 150, "b": 7}, 2.0) == {"a": 25.0, "b": 0.0}


def test_counters_that_began_anew_count_from_nothing() -> None:
    assert per_second({"a": 1000}, {"a": 30, "new": 10}, 2.0) == {"a": 15.0, "new": 5.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 "),
        (0.4, "0 "),
        (7, "7 "),
        (999, "999 "),
        (999.6, "1.00 k"),
        (1000, "1.00 k"),
        (9_994, "9.99 k"),
        (9_996, "10.0 k"),
        (99_960, "100 k"),
        (999_600, "1.00 M"),
        (1.25e9, "1.25 G"),
        (123.4e9, "123 G"),
        (2e12, "2000 G"),
    ],
)
def test_three_digits_and_a_prefix(value: float, text: str) -> None:
    assert scaled(value) == text


def test_bytes_are_shown_as_bits() -> None:
    assert in_bits(125_000_000) == "1.00 Gbit/s"
    assert in_bits(0) == "0 bit/s"


def test_one_is_not_many() -> None:
    assert [counted(n, "peer") for n in (0, 1, 2, 1234)] == [
        "0 peers",
        "1 peer",
        "2 peers",
        "1,234 peers",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (3600, "60 min"),
        (7200, "2.0 h"),
        (86_000, "23.9 h"),
        (200_000, "2 days"),
    ],
)
def test_durations_are_as_precise_as_people_want_them(seconds: float, text: str) -> None:
    assert in_time(seconds) == text
