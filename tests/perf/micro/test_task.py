"""A rate is that of the work, however long the first time takes."""

from __future__ import annotations

import time

import pytest

from perf.micro.task import Task, per_second, repeated


class Clock:
    """Goes on only by the work: what takes how long is decided here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.times = 0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now_s)

    def task(self, first_s: float, next_s: float) -> Task:
        def work(times: int) -> None:
            for _ in range(times):
                self.now_s += first_s if self.times == 0 else next_s
                self.times += 1

        return Task(work, lambda: None)


def test_rate_is_that_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert per_second(clock.task(0.002, 0.002), 0.1) == pytest.approx(500)


def test_compiling_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert per_second(clock.task(3.0, 1e-6), 0.1) == pytest.approx(1e6)
    assert clock.now_s == pytest.approx(3.1, rel=0.5)


def test_work_that_takes_longer_than_asked_for_is_done_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    assert per_second(clock.task(2.0, 2.0), 0.1) == pytest.approx(0.5)
    assert clock.times == 3


def test_real_work_is_timed() -> None:
    assert 20 < per_second(Task(repeated(lambda: time.sleep(0.01)), lambda: None), 0.05) <= 100
