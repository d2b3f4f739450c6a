"""The results as Markdown: one table per scene, each figure beside its target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from perf.measure import Measure, Scene, Status, Target
from perf.results import Results, Spread

HEADINGS = ("what", "contender", "median", "min–max", "ratio", "target", "besides")


def to_markdown(results: Results, scenes: Sequence[Scene[Any]], about: dict[str, Any]) -> str:
    """`about`: as in the JSON."""
    parts = ["# loden benchmark", "\n".join(about_lines(about))]
    for scene in scenes:
        rows = [row for measure in scene.measures for row in rows_of(results, measure, scene)]
        if rows:
            parts.append(f"## {scene.title[0].upper()}{scene.title[1:]}")
            parts.append(table(HEADINGS, rows))
    parts.append(
        "Ratios are taken pair by pair within each round, to the contender named; median and "
        "min–max. perf/README.md explains the method."
    )
    return "\n\n".join(parts) + "\n"


def about_lines(about: dict[str, Any]) -> Iterator[str]:
    machine = about["machine"]
    yield f"- {about['begun']}, {about['repeat']} rounds, {about['seconds']:.0f} s"
    if about["quick"]:
        yield "- **--quick: short and few; good to see that it works, not to compare by**"
    yield f"- {machine['cpus']} CPUs: {machine['cpu']}; load before: {machine['load_before']}"
    yield f"- Linux {machine['kernel']} {machine['architecture']}, Python {machine['python']}"
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    changed = " with uncommitted changes" if machine["uncommitted_changes"] else ""
    yield f"- {packages}; commit {(machine['commit'] or 'unknown')[:12]}{changed}"


def rows_of(results: Results, measure: Measure[Any], scene: Scene[Any]) -> Iterator[Sequence[str]]:
    """One per contender that was to be measured."""
    for contender in (name for name in measure.contenders if name in scene.sites):
        spread = results.spread(measure.name, contender)
        targets = [target for target in measure.targets if target.contender == contender]
        yield (
            f"{measure.title} ({measure.unit})",
            contender,
            "" if spread is None else figure(spread.median),
            "" if spread is None else range_of(spread),
            ratio_cell(results, measure, contender),
            "; ".join(target_cell(results, measure, target) for target in targets),
            besides_cell(results, measure, contender),
        )


def ratio_cell(results: Results, measure: Measure[Any], contender: str) -> str:
    than = measure.reference
    if than is None or than == contender:
        return ""
    ratio = results.ratio(measure.name, contender, than)
    return "" if ratio is None else f"{ratio.median:.2f} × {than} ({range_of(ratio)})"


def target_cell(results: Results, measure: Measure[Any], target: Target) -> str:
    bound = "≥" if measure.more_is_better else "≤"
    limit = f"{bound} {target.limit:g}" + (f" × {target.than}" if target.than else "")
    limit += f" at {target.of}" if target.of else ""
    verdict = {True: "met", False: "**missed**", None: "**no figure**"}
    return f"{limit}: {verdict[results.is_met(measure, target)]}"


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


def figure(value: float) -> str:
    """Three significant digits; large whole numbers as they are."""
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def range_of(spread: Spread) -> str:
    return f"{figure(spread.low)}–{figure(spread.high)}" if spread.count > 1 else "one round"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In columns of even width, to be read as it is, too; what repeats stands once."""
    shown: list[Sequence[str]] = []
    before = ""
    for first, *rest in rows:
        shown.append(("" if first == before else first, *rest))
        before = first
    cells = [[cell.replace("|", "\\|") for cell in row] for row in shown]
    lines = [list(headings), ["---"] * len(headings), *cells]
    *widths, _ = (max(len(line[column]) for line in lines) for column in range(len(headings)))
    widths.append(3)  # the last column may be as long as it likes
    lines[1] = ["-" * width for width in widths]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
