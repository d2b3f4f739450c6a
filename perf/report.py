"""A run as Markdown: a table per scene, each figure beside its target, then a table per curve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perf.markdown import figure, in_capitals, range_of, ratio_range, table, times
from perf.measure import Curve, Measure, Scene, Status, Target
from perf.record import Run
from perf.results import Results, curves_of

HEADINGS = ("what", "contender", "median", "min–max", "ratio", "target", "besides")
WHO = "who is who, and how to read it"
HOW_TO_READ = (
    "A figure is the median of its rounds, the spread beside it the smallest and the largest. "
    "Ratios are taken pair by pair within each round, to the contender named. perf/README.md "
    "explains the method."
)


def to_markdown(run: Run) -> str:
    parts = ["# loden benchmark", bullets(about_lines(run))]
    for scene in run.scenes:
        rows = [row for m in scene.measures if stands_alone(m) for row in rows_of(run, m, scene)]
        if rows:
            parts += [f"## {in_capitals(scene.title)}", table(HEADINGS, rows)]
    for curve, measures in curves_of(run.scenes).items():
        cells = table(curve_headings(curve, measures), curve_rows(run, measures))
        parts += [f"## {in_capitals(curve.title)}", cells]
    if reasons := list(missing(run)):
        parts += ["## Not measured", bullets(reasons)]
    parts += [f"## {in_capitals(WHO)}", bullets(list(contender_lines(run))), HOW_TO_READ]
    return "\n\n".join(parts) + "\n"


def bullets(lines: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def about_lines(run: Run) -> Iterator[str]:
    about = run.about
    machine = about["machine"]
    rounds = f"{about['repeat']} round{'s' if about['repeat'] > 1 else ''}"
    yield f"{about['begun']}, {rounds}, {about['seconds']:.0f} s"
    if about["quick"]:
        yield "**--quick: short and few; good to see that it works, not to compare by**"
    yield f"{machine['cpus']} CPUs: {machine['cpu']}; load before: {machine['load_before']}"
    yield f"Linux {machine['kernel']} {machine['architecture']}, Python {machine['python']}"
    packages = (f"{name} {number}" for name, number in machine["packages"].items() if number)
    changed = " with uncommitted changes" if machine["uncommitted_changes"] else ""
    yield f"{', '.join(packages)}; commit {(machine['commit'] or 'unknown')[:12]}{changed}"
    yield settings_line(machine)
    yield from mtu_lines(run)
    yield from offload_lines(run)
    yield targets_line(run)


def mtu_lines(run: Run) -> Iterator[str]:
    sites = (site for scene in run.about.get("sites", {}).values() for site in scene.values())
    for mtu in sorted({site["pod MTU"] for site in sites if "pod MTU" in site}):
        yield f"MTU of all pods, whatever the contender: {mtu}"


def offload_lines(run: Run) -> Iterator[str]:
    """Which offloads of the underlay's interface were on, for each kind of underlay."""
    for name, sites in run.about.get("sites", {}).items():
        shown = {tuple(f["offloads"].items()) for f in sites.values() if "offloads" in f}
        for offloads in sorted(shown):
            on = ", ".join(feature for feature, active in offloads if active) or "none"
            yield f"offloads on in `{name}`: {on}"


def settings_line(machine: Mapping[str, Any]) -> str:
    """Of kernel and CPU, those that figures depend on; what there is none of is left out."""
    known = (f"{name} {value}" for name, value in machine.get("settings", {}).items() if value)
    return ", ".join(known) or "no settings could be read"


def targets_line(run: Run) -> str:
    met = [run.results.is_met(measure, t) for measure in run.measures() for t in measure.targets]
    counts = (f"{met.count(True)} met", f"{met.count(False)} missed")
    return f"targets: {', '.join(counts)}, {met.count(None)} without a figure"


def contender_lines(run: Run) -> Iterator[str]:
    """What each contender is that had a turn; its version, or its settings where it is ours."""
    measured = {outcome.contender for outcome in run.results.outcomes}
    for name, what in run.contenders.items():
        sites = [site[name] for site in run.about.get("sites", {}).values() if name in site]
        facts = {key: value for site in sites for key, value in site.items()}
        version = f" ({facts['version']})" if "version" in facts else ""
        settings = f"; {fact_text(facts['loden'])}" if "loden" in facts else ""
        if name in measured:
            yield f"`{name}`: {what}{version}{settings}"


def fact_text(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in facts.items())


def stands_alone(measure: Measure[Any]) -> bool:
    """Whether it has rows of its own, and not only its place on a curve."""
    return not measure.points or bool(measure.targets)


def rows_of(run: Run, measure: Measure[Any], scene: Scene[Any]) -> Iterator[Sequence[str]]:
    """One per contender that was to be measured."""
    for contender in (name for name in measure.contenders if name in scene.sites):
        spread = run.results.spread(measure.name, contender)
        targets = [target for target in measure.targets if target.contender == contender]
        yield (
            f"{measure.title} ({measure.unit})",
            contender,
            "" if spread is None else figure(spread.median),
            "" if spread is None else range_of(spread),
            ratio_cell(run.results, measure, contender),
            "; ".join(target_cell(run.results, measure, target) for target in targets),
            besides_cell(run.results, measure, contender),
        )


def ratio_cell(results: Results, measure: Measure[Any], contender: str) -> str:
    than = measure.reference
    if than is None or than == contender:
        return ""
    ratio = results.ratio(measure.name, contender, than)
    if ratio is None:
        return ""
    return f"{times(ratio.median)} × {than} ({ratio_range(ratio)})"


def aim(measure: Measure[Any], target: Target) -> str:
    bound = "≥" if measure.more_is_better else "≤"
    limit = f"{bound} {target.limit:g}" + (f" × {target.than}" if target.than else "")
    return limit + (f" at {target.of}" if target.of else "")


def target_cell(results: Results, measure: Measure[Any], target: Target) -> str:
    verdict = {True: "met", False: "**missed**", None: "**no figure**"}
    return f"{aim(measure, target)}: {verdict[results.is_met(measure, target)]}"


def besides_cell(results: Results, measure: Measure[Any], contender: str) -> str:
    """What else was seen, and what was not measured at all."""
    details = results.details(measure.name, contender)
    parts = [f"{name} {detail(name, value)}" for name, value in details.items()]
    for status in (Status.FAILED, Status.SKIPPED):
        count = sum(o.status is status for o in results.of(measure.name, contender))
        reasons = "; ".join(map(shortened, results.reasons(measure.name, contender, status)))
        if count:
            parts.append(f"**{status.value} × {count}**: {reasons}")
    return ", ".join(parts)


def shortened(reason: str) -> str:
    """On one line; of a log its end.  The JSON has it all."""
    first, *rest = (line.strip() for line in reason.splitlines())
    return f"{first} … {rest[-1]}" if rest else first


def detail(name: str, value: float) -> str:
    return f"{value:.3%}" if name == "loss" else figure(value)


def curve_headings(curve: Curve, measures: Sequence[tuple[float, Measure[Any]]]) -> list[str]:
    """What the columns are, then each x."""
    unit = measures[0][1].unit
    x_unit = f" ({curve.x_unit})" if curve.x_unit else ""
    return [f"{unit}; {curve.x_name}{x_unit} →", *(figure(x) for x, _ in measures)]


def curve_rows(run: Run, measures: Sequence[tuple[float, Measure[Any]]]) -> list[list[str]]:
    """One per contender that had a turn at any point of the curve."""
    names = dict.fromkeys(name for _, measure in measures for name in measure.contenders)
    return [
        [name, *(point_cell(run.results, measure, name) for _, measure in measures)]
        for name in names
        if any(run.results.of(measure.name, name) for _, measure in measures)
    ]


def point_cell(results: Results, measure: Measure[Any], contender: str) -> str:
    spread = results.spread(measure.name, contender)
    if spread is None:
        outcomes = results.of(measure.name, contender)
        return f"**{outcomes[0].status.value}**" if outcomes else ""
    return figure(spread.median) + (f" ({range_of(spread)})" if spread.count > 1 else "")


def missing(run: Run) -> Iterator[str]:
    """What failed or was skipped on the curves, each reason once; the tables have their own."""
    told = set()
    for measure in (m for m in run.measures() if not stands_alone(m)):
        for contender in measure.contenders:
            for status in (Status.FAILED, Status.SKIPPED):
                for reason in run.results.reasons(measure.name, contender, status):
                    key = (measure.points[0].curve.name, contender, status, reason)
                    if key not in told:
                        told.add(key)
                        yield f"{key[0]}, {contender}: **{status.value}**: {shortened(reason)}"
