"""Whether two sets of readings differ by more than their own noise.

Readings are compared as logarithms, since noise in a rate is a share of it: a change is then a
factor, with an interval around it.  Welch's t-test tells how likely noise alone would bring about
such a change; it does not ask for equal noise on both sides.  Of many comparisons some are always
far off by chance, and Holm's procedure asks for so much more of each, that all of them together
raise a false alarm only as often as one test would.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

READINGS_MIN = 3
"""Fewer tell nothing of their noise."""
CONFIDENCE = 0.95
FREEDOM_MAX = 200.0
"""With more, Student's t is the normal distribution but for a hundredth."""
_STEPS = 400


@dataclass(frozen=True)
class Change:
    factor: float
    """New to old, of the geometric means."""
    low: float
    high: float
    """The interval the factor lies in, with CONFIDENCE."""
    p: float
    """How likely noise alone would bring about such a change, in either direction."""


def change_between(old: Sequence[float], new: Sequence[float]) -> Change | None:
    """None if these readings cannot tell: too few of them, or one that is not above 0."""
    if min(len(old), len(new)) < READINGS_MIN or min(*old, *new) <= 0:
        return None
    before, after = [math.log(value) for value in old], [math.log(value) for value in new]
    shift = statistics.mean(after) - statistics.mean(before)
    a, b = statistics.variance(before) / len(before), statistics.variance(after) / len(after)
    error = math.sqrt(a + b)
    if error == 0:  # none of the readings differs from the others of its run
        return Change(math.exp(shift), math.exp(shift), math.exp(shift), 1.0 if shift == 0 else 0.0)
    # Welch 1947, Satterthwaite 1946.
    freedom = (a + b) ** 2 / (a**2 / (len(before) - 1) + b**2 / (len(after) - 1))
    freedom = min(freedom, FREEDOM_MAX)
    reach = error * t_beyond((1 - CONFIDENCE) / 2, freedom)
    return Change(
        math.exp(shift),
        math.exp(shift - reach),
        math.exp(shift + reach),
        2 * t_tail(abs(shift) / error, freedom),
    )


def t_tail(t: float, freedom: float) -> float:
    """The probability that Student's t exceeds `t`, which is not below 0.

    With t = sqrt(freedom) * tan(angle), the density is a power of a cosine.
    """
    angles = np.linspace(math.atan(t / math.sqrt(freedom)), math.pi / 2, _STEPS + 1)
    heights = np.maximum(np.cos(angles), 0) ** (freedom - 1)
    weights = np.full(_STEPS + 1, 2.0)  # Simpson's rule
    weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
    area = float(heights @ weights) * float(angles[1] - angles[0]) / 3
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(math.pi) / 2
    return min(0.5, math.exp(scale) * area)


def t_beyond(tail: float, freedom: float) -> float:
    """The t that is exceeded with probability `tail`, below one half: by halving."""
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > tail:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > tail else (low, middle)
    return high


def adjusted(ps: Sequence[float]) -> list[float]:
    """Each p for its place among all of them (Holm 1979): these may be compared with one limit."""
    order = sorted(range(len(ps)), key=lambda index: ps[index])
    found = [0.0] * len(ps)
    least = 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, ps[index] * (len(ps) - rank)))
        found[index] = least
    return found
