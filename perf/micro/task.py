"""What a contender does for one microbenchmark, and how it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

WARM_UP_S = 0.01


@dataclass(frozen=True)
class Task:
    work: Callable[[int], object]
    """Does all of a kernel's inputs, so many times over."""
    result: Callable[[], object]
    """What they come to, in plain values: the same for every contender."""


def repeated(function: Callable[[], object]) -> Callable[[int], object]:
    """`work` of a Python function."""

    def work(times: int) -> None:
        for _ in range(times):
            function()

    return work


def per_second(task: Task, seconds: float) -> float:
    """How often the work is done in a second, measured for about so long after a warm-up.

    The first time compiles, and is not looked at; the warm-up tells how many times are enough.
    """
    task.work(1)
    times, taken_s = 1, timed(task, 1)
    while taken_s < min(WARM_UP_S, seconds):
        times *= 2
        taken_s = timed(task, times)
    times = max(1, round(times * seconds / taken_s))
    return times / timed(task, times)


def timed(task: Task, times: int) -> float:
    begun = time.perf_counter()
    task.work(times)
    return time.perf_counter() - begun
