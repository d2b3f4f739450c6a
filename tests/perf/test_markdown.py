"""Tables line up, and figures have as many digits as they are worth."""

from __future__ import annotations

import pytest

from perf.markdown import figure, table, times


@pytest.mark.parametrize(
    ("value", "shown"), [(0.2571, "0.257"), (12.34, "12.3"), (5.0, "5"), (123456.7, "123,457")]
)
def test_figures_have_three_digits(value: float, shown: str) -> None:
    assert figure(value) == shown


@pytest.mark.parametrize(
    ("ratio", "shown"), [(2.0, "2.00"), (0.134, "0.13"), (0.001234, "0.0012"), (43210.9, "43,211")]
)
def test_small_ratio_is_not_shown_as_nothing(ratio: float, shown: str) -> None:
    assert times(ratio) == shown


def test_table_lines_up() -> None:
    lines = table(("a", "b", "c"), [("long", "1", "x"), ("long", "2", "y")]).splitlines()
    assert lines == [
        "| a    | b   | c   |",
        "| ---- | --- | --- |",
        "| long | 1   | x   |",
        "|      | 2   | y   |",
    ]
