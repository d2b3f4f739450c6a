"""The time left is estimated, then mended by how long things take."""

from __future__ import annotations

import pytest

from perf.progress import TimeLeft, in_words, shown


def test_time_left_is_what_was_estimated_at_first() -> None:
    left = TimeLeft(100, now=1000)
    assert (left.seconds(1000), left.seconds(1030), left.seconds(2000)) == (100, 70, 0)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_time_left_follows_the_pace(factor: float) -> None:
    left = TimeLeft(1000, now=0)
    for step in range(1, 81):
        left.done(10, now=step * 10 * factor)

    assert left.seconds(800 * factor) == pytest.approx(200 * factor, rel=0.1)


def test_what_takes_longer_than_all_that_was_estimated_leaves_nothing() -> None:
    left = TimeLeft(10, now=0)
    left.done(20, now=5)
    assert left.seconds(5) == 0


@pytest.mark.parametrize(
    ("seconds", "words"), [(59.6, "60 s left"), (600, "10 min left"), (9000, "2.5 h left")]
)
def test_time_left_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_lines_say_what_is_done_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with shown(120) as watch:
        watch.doing("kernels: building loden")
        watch.done(60)
        watch.doing("kernels: lookup-leases, loden, round 1")

    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("kernels: building loden (2 min left)")
    assert said[1].startswith("kernels: lookup-leases, loden, round 1 (")
    assert "s left)" in said[1]
