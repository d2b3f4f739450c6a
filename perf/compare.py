"""Two runs beside each other: what of loden got worse or better beyond the noise.

Where a measure has a yardstick, a contender that is not loden, what is compared is loden's ratio to
it within each round: whatever made all of a run slower is in both, and cancels.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from perf.markdown import figure, table, times
from perf.measure import Measure
from perf.record import Run
from perf.report import bullets
from perf.significance import CONFIDENCE, READINGS_MIN, Change, adjusted, change_between

FALSE_ALARMS = 0.05
"""How often noise alone may raise an alarm, over all figures of a comparison."""
THRESHOLD = 0.05
"""Smaller changes are none: so much differs between two runs of the same code without a reason,
such as where in memory things lie, which the noise within a run does not show."""
MACHINE = ("cpu", "cpus", "memory_gb", "architecture", "kernel", "settings")
VERSIONS = ("python", "packages", "tools")


class Verdict(Enum):
    WORSE = "worse"
    GONE = "no longer measured"
    BETTER = "better"
    UNKNOWN = "cannot tell"
    SAME = "unchanged"


ALARMS = (Verdict.WORSE, Verdict.GONE)


@dataclass(frozen=True)
class Row:
    """One figure of loden, in both runs."""

    measure: Measure[Any]
    contender: str
    yardstick: str | None
    """The ratio to it is what was compared."""
    old: float | None
    new: float | None
    """Medians of the figures themselves."""
    change: Change | None
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    old: Run
    new: Run
    rows: list[Row]
    threshold: float
    differences: list[str]
    """That make the two runs hard to compare; there are some only if that was overridden."""

    def having(self, *verdicts: Verdict) -> list[Row]:
        return [row for row in self.rows if row.verdict in verdicts]


# ---- may they be compared? ----------------------------------------------------------------------


def differences_between(old: Run, new: Run) -> list[str]:
    """In machine and settings: what makes a comparison mean little."""
    before, after = old.about, new.about
    found = list(_differing(MACHINE, before["machine"], after["machine"]))
    found += _differing(("quick",), before, after)
    known_to_both = [name for name in before["effort"] if name in after["effort"]]
    found += _differing(known_to_both, before["effort"], after["effort"])
    for scene in before["sites"].keys() & after["sites"].keys():
        a, b = before["sites"][scene], after["sites"][scene]
        for contender in sorted(a.keys() & b.keys()):
            for line in _differing(("offloads",), a[contender], b[contender]):
                found.append(f"{scene}, {contender}: {line}")
    return found


def notes_on(old: Run, new: Run) -> list[str]:
    """What else differs, and may be the very thing one wants to compare."""
    return list(_differing(VERSIONS, old.about["machine"], new.about["machine"]))


def _differing(names: Sequence[str], old: Any, new: Any) -> Iterator[str]:
    for name in names:
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            for line in _differing(list(dict.fromkeys([*a, *b])), a, b):
                yield f"{name}: {line}"
        elif a != b:
            yield f"{name}: {a} → {b}"


# ---- what changed -------------------------------------------------------------------------------


def compare(
    old: Run, new: Run, threshold: float = THRESHOLD, differences: Sequence[str] = ()
) -> Comparison:
    """All of loden's figures that the old run has and the new one was to have."""
    before = {measure.name: measure for measure in old.measures()}
    undecided = [
        _row(old, new, measure, contender)
        for measure in new.measures()
        if measure.name in before and before[measure.name].unit == measure.unit
        for contender in measure.contenders
        if is_ours(contender)
        and old.results.values(measure.name, contender)
        and new.results.of(measure.name, contender)
    ]
    ps = iter(adjusted([row.change.p for row in undecided if row.change]))
    rows = [_decided(row, next(ps), threshold) if row.change else row for row in undecided]
    return Comparison(old, new, rows, threshold, list(differences))


def is_ours(contender: str) -> bool:
    """Whether its speed is ours to change."""
    return contender.startswith("loden")


def _row(old: Run, new: Run, measure: Measure[Any], contender: str) -> Row:
    yardstick = _yardstick(old, new, measure)
    before, after = (_figures(run, measure, contender, yardstick) for run in (old, new))
    change = change_between(before, after)
    medians = [run.results.spread(measure.name, contender) for run in (old, new)]
    was, is_now = (spread.median if spread else None for spread in medians)
    verdict = Verdict.GONE if is_now is None else Verdict.UNKNOWN
    return Row(measure, contender, yardstick, was, is_now, change, verdict)


def _yardstick(old: Run, new: Run, measure: Measure[Any]) -> str | None:
    """The measure's reference, if that is not ours and was measured on both sides."""
    name = measure.reference
    if name is None or is_ours(name):
        return None
    return name if all(run.results.values(measure.name, name) for run in (old, new)) else None


def _figures(run: Run, measure: Measure[Any], contender: str, yardstick: str | None) -> list[float]:
    """One for each round."""
    values = run.results.values(measure.name, contender)
    if yardstick is None:
        return list(values.values())
    theirs = run.results.values(measure.name, yardstick)
    return [values[number] / theirs[number] for number in values if theirs.get(number)]


def _decided(row: Row, p: float, threshold: float) -> Row:
    """`p`: adjusted for the number of comparisons."""
    assert row.change
    factor = row.change.factor
    verdict = Verdict.SAME
    if p < FALSE_ALARMS and max(factor, 1 / factor) > 1 + threshold:
        verdict = Verdict.BETTER if (factor > 1) == row.measure.more_is_better else Verdict.WORSE
    return Row(**{**vars(row), "verdict": verdict})


# ---- as Markdown --------------------------------------------------------------------------------

HEADINGS = ("what", "contender", "old", "new", "change", "between", "compared by", "verdict")


def to_markdown(comparison: Comparison, all_rows: bool = False) -> str:
    """`all_rows`: those that are unchanged, too."""
    shown = [Verdict.WORSE, Verdict.GONE, Verdict.BETTER, Verdict.UNKNOWN]
    shown += [Verdict.SAME] if all_rows else []
    rows = [cells_of(row) for verdict in shown for row in comparison.having(verdict)]
    parts = ["# loden, old and new", bullets(about_lines(comparison)), summary(comparison)]
    if rows:
        parts.append(table(HEADINGS, rows))
    parts.append(method(comparison))
    return "\n\n".join(parts) + "\n"


def about_lines(comparison: Comparison) -> Iterator[str]:
    for name, run in (("old", comparison.old), ("new", comparison.new)):
        machine = run.about["machine"]
        changed = " with uncommitted changes" if machine["uncommitted_changes"] else ""
        commit = (machine["commit"] or "unknown")[:12] + changed
        yield f"{name}: {run.about['begun']}, {run.about['repeat']} rounds, commit {commit}"
    for line in comparison.differences:
        yield f"**not the same machine or settings**: {line}"
    for line in notes_on(comparison.old, comparison.new):
        yield f"also different: {line}"
    if drifts := yardstick_drifts(comparison.old, comparison.new):
        middle, low, high = (times(f(drifts)) for f in (statistics.median, min, max))
        yield f"what is not loden went {middle} times as well as before ({low}–{high})"


def yardstick_drifts(old: Run, new: Run) -> list[float]:
    """How each contender that is not ours fares now; above 1: better.  The machine's doing."""
    drifts = []
    for measure in new.measures():
        for contender in (name for name in measure.contenders if not is_ours(name)):
            before, after = (run.results.spread(measure.name, contender) for run in (old, new))
            if before and after and before.median > 0 and after.median > 0:
                factor = after.median / before.median
                drifts.append(factor if measure.more_is_better else 1 / factor)
    return drifts


def summary(comparison: Comparison) -> str:
    counts = {verdict: len(comparison.having(verdict)) for verdict in Verdict}
    told = [
        f"**{count} {verdict.value}**"
        if count and verdict in ALARMS
        else f"{count} {verdict.value}"
        for verdict, count in counts.items()
        if count or verdict in (Verdict.WORSE, Verdict.SAME)
    ]
    return f"Figures of loden: {', '.join(told)}."


def cells_of(row: Row) -> Sequence[str]:
    change = row.change
    return (
        f"{row.measure.title} ({row.measure.unit})",
        row.contender,
        "" if row.old is None else figure(row.old),
        "" if row.new is None else figure(row.new),
        "" if change is None else percent(change.factor),
        "" if change is None else f"{percent(change.low)} and {percent(change.high)}",
        f"ratio to {row.yardstick}" if row.yardstick else "figure",
        f"**{row.verdict.value}**" if row.verdict in ALARMS else row.verdict.value,
    )


def percent(factor: float) -> str:
    return f"{100 * (factor - 1):+.1f} %"


def method(comparison: Comparison) -> str:
    reaches = [
        max(row.change.high / row.change.factor, row.change.factor / row.change.low) - 1
        for row in comparison.rows
        if row.change
    ]
    sentences = [
        f"Worse or better is what changed by more than {comparison.threshold:.0%}, and beyond what "
        f"noise alone would do in one of {round(1 / FALSE_ALARMS)} comparisons (Welch's t-test on "
        "the logarithms of the rounds' readings, adjusted by Holm for their number). The change is "
        f"of the geometric mean, and lies between the two bounds with {CONFIDENCE:.0%} confidence."
    ]
    if reaches:
        reach = statistics.median(reaches)
        sentences.append(f"Half of the changes are known to within {reach:.1%}.")
    if comparison.having(Verdict.UNKNOWN):
        sentences.append(f"It takes {READINGS_MIN} rounds of each, above 0, to tell anything.")
    return " ".join(sentences)
