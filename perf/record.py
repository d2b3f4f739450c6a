"""A run as it is kept: everything that a report or a comparison needs, as JSON and back.

What is read from a file has the same scenes and measures as a run that has just ended, but none of
them can be measured again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from perf.measure import (
    Curve,
    Measure,
    Outcome,
    Point,
    Reading,
    Scene,
    Status,
    Target,
)
from perf.results import Results, curves_of

FORMAT = 2
"""Of the JSON; another one is another number."""


class NoRecord(ValueError):
    """A file does not hold a run; the message names it and says why."""


@dataclass(frozen=True)
class Run:
    about: Mapping[str, Any]
    """When, where and how: begun, seconds, quick, repeat, effort, machine, sites."""
    scenes: Sequence[Scene[Any]]
    results: Results
    contenders: Mapping[str, str] = field(default_factory=dict)
    """What each of them is."""

    def measures(self) -> list[Measure[Any]]:
        return [measure for scene in self.scenes for measure in scene.measures]


def to_json(run: Run) -> dict[str, Any]:
    """Plain values."""
    return {
        "format": FORMAT,
        **run.about,
        "contenders": dict(run.contenders),
        "scenes": {
            scene.name: {"title": scene.title, "contenders": list(scene.sites)}
            for scene in run.scenes
        },
        "curves": {
            curve.name: {"title": curve.title, "x_name": curve.x_name, "x_unit": curve.x_unit}
            for curve in curves_of(run.scenes)
        },
        "measures": {
            measure.name: {
                "title": measure.title,
                "scene": scene.name,
                "unit": measure.unit,
                "contenders": list(measure.contenders),
                "more_is_better": measure.more_is_better,
                "reference": measure.reference,
                "targets": [
                    {**asdict(target), "met": run.results.is_met(measure, target)}
                    for target in measure.targets
                ],
                "points": [{"curve": p.curve.name, "x": p.x} for p in measure.points],
            }
            for scene in run.scenes
            for measure in scene.measures
        },
        "outcomes": [
            {
                "measure": outcome.measure,
                "contender": outcome.contender,
                "round": outcome.round,
                "status": outcome.status.value,
                "value": outcome.reading.value if outcome.reading else None,
                "details": dict(outcome.reading.details) if outcome.reading else {},
                "why_not": outcome.why_not,
            }
            for outcome in run.results.outcomes
        ],
    }


def from_json(kept: Any) -> Run:
    """The mirror of `to_json`.  Raises NoRecord."""
    number = kept.get("format") if isinstance(kept, Mapping) else None
    if number != FORMAT:
        raise NoRecord(f"format: {number!r} is not readable here; it must be {FORMAT}")
    try:
        return _run_of(kept)
    except (KeyError, TypeError, ValueError) as error:
        raise NoRecord(f"it lacks or garbles a part: {type(error).__name__}: {error}") from error


def _run_of(kept: Mapping[str, Any]) -> Run:
    parts = ("format", "contenders", "scenes", "curves", "measures", "outcomes")
    curves = {name: Curve(name, **curve) for name, curve in kept["curves"].items()}
    scenes = [
        Scene[Any](
            name,
            scene["title"],
            dict.fromkeys(scene["contenders"], _only_recorded),
            tuple(
                _measure_of(measure_name, measure, curves)
                for measure_name, measure in kept["measures"].items()
                if measure["scene"] == name
            ),
        )
        for name, scene in kept["scenes"].items()
    ]
    return Run(
        {name: value for name, value in kept.items() if name not in parts},
        scenes,
        Results(map(_outcome_of, kept["outcomes"])),
        kept["contenders"],
    )


def _measure_of(name: str, kept: Mapping[str, Any], curves: Mapping[str, Curve]) -> Measure[Any]:
    targets = [{k: v for k, v in target.items() if k != "met"} for target in kept["targets"]]
    return Measure(
        name=name,
        title=kept["title"],
        unit=kept["unit"],
        contenders=tuple(kept["contenders"]),
        take=_only_recorded,
        seconds=_only_recorded,
        more_is_better=kept["more_is_better"],
        reference=kept["reference"],
        targets=tuple(Target(**target) for target in targets),
        points=tuple(Point(curves[point["curve"]], point["x"]) for point in kept["points"]),
    )


def _outcome_of(kept: Mapping[str, Any]) -> Outcome:
    status = Status(kept["status"])
    reading = Reading(kept["value"], kept["details"]) if status is Status.MEASURED else None
    return Outcome(
        kept["measure"], kept["contender"], kept["round"], status, reading, kept["why_not"]
    )


def _only_recorded(*_: Any) -> NoReturn:
    raise TypeError("this measure was read from a file: it can be shown, and not taken")


def write(run: Run, path: Path) -> None:
    """Each outcome on a line of its own: there are thousands."""
    kept = to_json(run)
    outcomes = ",\n".join(json.dumps(one, ensure_ascii=False) for one in kept.pop("outcomes"))
    rest = json.dumps(kept, indent=1, ensure_ascii=False).removesuffix("\n}")
    path.write_text(f'{rest},\n "outcomes": [\n{outcomes}\n]}}\n')


def read(path: Path) -> Run:
    """Raises OSError, and NoRecord, which names the file."""
    try:
        return from_json(json.loads(path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise NoRecord(f"{path}: this is no JSON: {error}") from error
    except NoRecord as error:
        raise NoRecord(f"{path}: {error}") from error
