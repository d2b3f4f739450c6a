"""Takes the measures: scene by scene, in rounds, contenders in turn.

    for each scene:   build a site for each contender
        for each round:   for each measure:   for each contender:   one reading

So the contenders' readings of a round are taken within seconds of each other, and whatever else
the machine does meets them all; each round begins with another contender.  What fails is an
outcome like any other, and says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from perf.measure import Effort, Measure, NotHere, Outcome, Reading, Scene, Status


@dataclass
class Watch:
    """Is told how things go."""

    doing: Callable[[str], object] = lambda what: None
    done: Callable[[float], object] = lambda seconds: None
    """With the seconds that were estimated for it."""


@dataclass
class Record:
    """All that came of a run."""

    outcomes: list[Outcome] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By scene and contender."""


def run(scenes: Sequence[Scene[Any]], effort: Effort, repeat: int, watch: Watch) -> Record:
    """Takes every measure of the scenes `repeat` times.  Interrupted, it takes down what is up."""
    record = Record()
    for scene in scenes:
        with contextlib.ExitStack() as leaving:
            sites: dict[str, Any] = {}
            refused: dict[str, Exception] = {}
            for contender in contenders_of(scene):
                watch.doing(f"{scene.name}: building {contender}")
                try:
                    sites[contender] = leaving.enter_context(scene.sites[contender](effort))
                except Exception as error:
                    refused[contender] = error
            watch.done(scene.build_s(effort))
            record.facts[scene.name] = {name: site.facts for name, site in sites.items()}
            for number, measure, contender in turns(scene, repeat):
                watch.doing(f"{scene.name}: {measure.name}, {contender}, round {number + 1}")
                if contender in sites:
                    outcome = take(measure, sites[contender], contender, number, effort)
                else:
                    outcome = no_reading(measure.name, contender, number, refused[contender])
                record.outcomes.append(outcome)
                watch.done(measure.seconds(effort))
    return record


def contenders_of(scene: Scene[Any]) -> list[str]:
    """Those that some measure needs, in the scene's order."""
    return [name for name in scene.sites if any(name in m.contenders for m in scene.measures)]


def turns(scene: Scene[Any], repeat: int) -> Iterator[tuple[int, Measure[Any], str]]:
    """Round, measure and contender of each reading, in order."""
    for number in range(repeat):
        for measure in scene.measures:
            names = [name for name in measure.contenders if name in scene.sites]
            for place in range(len(names)):
                yield number, measure, names[(number + place) % len(names)]


def take(measure: Measure[Any], site: Any, contender: str, number: int, effort: Effort) -> Outcome:
    """One reading, or why there is none."""
    try:
        reading: Reading = measure.take(site, effort)
    except Exception as error:
        return no_reading(measure.name, contender, number, error)
    return Outcome(measure.name, contender, number, Status.MEASURED, reading)


def no_reading(measure: str, contender: str, number: int, error: Exception) -> Outcome:
    status = Status.SKIPPED if isinstance(error, NotHere) else Status.FAILED
    return Outcome(measure, contender, number, status, None, str(error) or type(error).__name__)


def estimate_s(scenes: Sequence[Scene[Any]], effort: Effort, repeat: int) -> float:
    """About how long `run` will take."""
    return sum(
        scene.build_s(effort)
        + sum(measure.seconds(effort) for _, measure, _ in turns(scene, repeat))
        for scene in scenes
    )
