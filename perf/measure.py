"""What a benchmark is made of: measures, taken on sites, which contenders build.

    Scene      one kind of underlay; for each contender, how to build a site there
    Site       what is measured: two pods and the overlay between them, a node, a table...
    Measure    takes a reading from a site, and has targets
    Reading    one figure, and what else was seen
    Outcome    a reading or why there is none, in one round of the benchmark

`perf/catalogue.py` lists them all, `perf/bench.py` takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar


class NotHere(RuntimeError):
    """This machine lacks what the contender needs; it is skipped, and the message says why."""


@dataclass(frozen=True)
class Effort:
    """How long to measure; every time is bounded by these."""

    tcp_s: int = 3
    trial_s: float = 0.5
    """One trial of the search for the highest rate."""
    trials_max: int = 14
    resolution: float = 0.02
    """The search ends when its bounds are this close (a share of the rate)."""
    pings: int = 5000
    kernel_s: float = 0.5
    """Of one kernel by itself."""
    idle_s: float = 5.0


QUICK = Effort(
    tcp_s=1,
    trial_s=0.3,
    trials_max=7,
    resolution=0.05,
    pings=1000,
    kernel_s=0.1,
    idle_s=2.0,
)


@dataclass(frozen=True)
class Reading:
    value: float
    details: Mapping[str, float] = field(default_factory=dict)


class Site(Protocol):
    """What a contender builds."""

    facts: dict[str, Any]
    """What the results shall record about it: offloads, versions."""


S = TypeVar("S", bound=Site)


@dataclass(frozen=True)
class Target:
    """What a contender's median should reach: `limit`, or `limit` times another's."""

    contender: str
    limit: float
    than: str | None = None
    """The other; the ratio is taken pair by pair, within each round."""
    of: str | None = None
    """The measure that `than` is taken from, where it is another one than the target's own."""


@dataclass(frozen=True)
class Curve:
    """What a plot shows: measures of one unit that differ in a single number, x."""

    name: str
    """--only takes it, for all of its measures."""
    title: str
    x_name: str
    x_unit: str = ""


@dataclass(frozen=True)
class Point:
    """Where a measure stands on a curve."""

    curve: Curve
    x: float


@dataclass(frozen=True)
class Measure(Generic[S]):
    name: str
    title: str
    unit: str
    contenders: tuple[str, ...]
    take: Callable[[S, Effort], Reading]
    seconds: Callable[[Effort], float]
    """About how long `take` takes; for the time left."""
    more_is_better: bool = True
    reference: str | None = "kernel"
    """The contender the others are shown as a ratio to."""
    targets: tuple[Target, ...] = ()
    points: tuple[Point, ...] = ()
    """On each curve that it is part of."""
    quick: tuple[str, ...] = ()
    """The contenders that --quick measures it with; none: it is left out."""

    def meets(self, target: Target, figure: float) -> bool:
        """`figure`: the value, or the ratio when the target names another contender."""
        return figure >= target.limit if self.more_is_better else figure <= target.limit


@dataclass(frozen=True)
class Scene(Generic[S]):
    name: str
    title: str
    sites: Mapping[str, Callable[[Effort], AbstractContextManager[S]]]
    """By contender."""
    measures: tuple[Measure[S], ...]
    build_s: Callable[[Effort], float] = lambda effort: 3.0
    """About how long it takes to build all sites; for the time left."""

    def narrowed(self, names: tuple[str, ...], contenders: tuple[str, ...]) -> Scene[S]:
        """With these measures (or all of a curve's) and contenders alone; none named: all."""
        return replace(
            self,
            sites={n: s for n, s in self.sites.items() if not contenders or n in contenders},
            measures=tuple(
                measure
                for measure in self.measures
                if not names
                or measure.name in names
                or any(point.curve.name in names for point in measure.points)
            ),
        )

    def quickened(self, contenders: tuple[str, ...] = ()) -> Scene[S]:
        """With what --quick measures; its measures with these contenders, if any are named."""
        quick = (
            replace(
                measure,
                contenders=tuple(
                    name for name in measure.contenders if name in (contenders or measure.quick)
                ),
            )
            for measure in self.measures
            if measure.quick
        )
        return replace(self, measures=tuple(measure for measure in quick if measure.contenders))


class Status(Enum):
    MEASURED = "measured"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Outcome:
    measure: str
    contender: str
    round: int
    status: Status
    reading: Reading | None = None
    """There is one exactly if it was measured."""
    why_not: str = ""
