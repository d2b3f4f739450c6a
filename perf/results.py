"""What the outcomes say: medians, spreads, ratios pair by pair, targets met."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from perf.measure import Curve, Measure, Outcome, Scene, Status, Target


@dataclass(frozen=True)
class Spread:
    """Some figures of the same kind."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread | None:
        """None if there are none."""
        if not figures:
            return None
        return cls(statistics.median(figures), min(figures), max(figures), len(figures))


class Results:
    """All outcomes of a run."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self.outcomes = list(outcomes)
        self._of: dict[tuple[str, str], list[Outcome]] = {}
        for outcome in self.outcomes:
            self._of.setdefault((outcome.measure, outcome.contender), []).append(outcome)

    def of(self, measure: str, contender: str) -> list[Outcome]:
        """In the order of the rounds."""
        return self._of.get((measure, contender), [])

    def values(self, measure: str, contender: str) -> dict[int, float]:
        """By round, those that were measured."""
        return {o.round: o.reading.value for o in self.of(measure, contender) if o.reading}

    def spread(self, measure: str, contender: str) -> Spread | None:
        return Spread.of(list(self.values(measure, contender).values()))

    def ratio(
        self, measure: str, contender: str, than: str, of: str | None = None
    ) -> Spread | None:
        """Of the two values of each round in which both were measured.

        `of`: the measure that the other's value is taken from; None: the same.
        """
        ours, theirs = self.values(measure, contender), self.values(of or measure, than)
        return Spread.of([ours[number] / theirs[number] for number in ours if number in theirs])

    def details(self, measure: str, contender: str) -> dict[str, float]:
        """The median of each, among the rounds that have it."""
        found: dict[str, list[float]] = {}
        for outcome in self.of(measure, contender):
            for name, value in outcome.reading.details.items() if outcome.reading else ():
                found.setdefault(name, []).append(value)
        return {name: statistics.median(values) for name, values in found.items()}

    def reasons(self, measure: str, contender: str, status: Status) -> list[str]:
        """Why there is no reading, each reason once."""
        found = [o.why_not for o in self.of(measure, contender) if o.status is status]
        return list(dict.fromkeys(found))

    def is_met(self, measure: Measure[Any], target: Target) -> bool | None:
        """By the median; None if there is no figure to tell by."""
        if target.than is None:
            figure = self.spread(measure.name, target.contender)
        else:
            figure = self.ratio(measure.name, target.contender, target.than, target.of)
        return None if figure is None else measure.meets(target, figure.median)

    def failures(self) -> int:
        return sum(outcome.status is Status.FAILED for outcome in self.outcomes)


def curves_of(scenes: Sequence[Scene[Any]]) -> dict[Curve, list[tuple[float, Measure[Any]]]]:
    """The measures of each curve, with their x, in its order."""
    curves: dict[Curve, list[tuple[float, Measure[Any]]]] = {}
    for measure in (measure for scene in scenes for measure in scene.measures):
        for point in measure.points:
            curves.setdefault(point.curve, []).append((point.x, measure))
    return {curve: sorted(found, key=lambda pair: pair[0]) for curve, found in curves.items()}
