"""Noise raises no alarm, and what got slower is found: in the direction that is worse for it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from perf.compare import Verdict, compare, differences_between, notes_on, to_markdown
from perf.measure import Measure, Outcome, Site
from perf.record import Run
from tests.perf.runs import ABOUT, measured, run_of, skipped, speed

MEASURES = tuple(
    speed(name=f"m{number}", more_is_better=number % 2 == 0, reference="kernel")
    for number in range(30)
)
ALONE = speed(name="alone", reference=None)


def noisy_run(
    dice: random.Random,
    *,
    rounds: int = 5,
    noise: float = 0.05,
    machine: float = 1.0,
    factors: Mapping[str, float] | None = None,
) -> Run:
    """`machine`: what all figures of the run are multiplied by; `factors`: those of loden."""
    outcomes: list[Outcome] = []
    for measure in MEASURES:
        slow = [machine * dice.lognormvariate(0, 0.2) for _ in range(rounds)]  # meets both alike
        for contender, factor in (("loden", (factors or {}).get(measure.name, 1)), ("kernel", 0.5)):
            values = [100 * factor * s * dice.lognormvariate(0, noise) for s in slow]
            outcomes += measured(contender, *values, measure=measure.name)
    return run_of(outcomes, *MEASURES)


def verdicts(old: Run, new: Run, **options: Any) -> dict[str, Verdict]:
    rows = compare(old, new, **options).rows
    return {row.measure.name: row.verdict for row in rows}


def test_noise_alone_gives_no_alarm() -> None:
    dice = random.Random(1)
    alarms = 0
    for _ in range(40):
        # The second run even met a machine that was busy with something else.
        found = verdicts(noisy_run(dice), noisy_run(dice, machine=0.7))
        assert len(found) == len(MEASURES)
        alarms += any(verdict is not Verdict.SAME for verdict in found.values())
    assert alarms <= 5  # 2 are to be expected


def test_slowdown_beyond_the_noise_is_found_and_nothing_else() -> None:
    dice = random.Random(2)
    factors = {"m0": 0.75, "m1": 1.35, "m2": 1.35, "m3": 0.75}
    expected = {
        "m0": Verdict.WORSE,  # a rate went down
        "m1": Verdict.WORSE,  # a time went up
        "m2": Verdict.BETTER,
        "m3": Verdict.BETTER,
    }
    right = 0
    for _ in range(20):
        found = verdicts(noisy_run(dice, noise=0.03), noisy_run(dice, noise=0.03, factors=factors))
        right += found == {**dict.fromkeys(found, Verdict.SAME), **expected}
    assert right >= 18


def test_change_below_the_threshold_is_none() -> None:
    dice = random.Random(3)
    old, new = noisy_run(dice, noise=0.001), noisy_run(dice, noise=0.001, factors={"m0": 0.96})

    assert verdicts(old, new)["m0"] is Verdict.SAME
    assert verdicts(old, new, threshold=0.02)["m0"] is Verdict.WORSE


def run_alone(*values: float | None, measure: Measure[Site] = ALONE, **about: Any) -> Run:
    return run_of(measured("loden", *values, measure=measure.name), measure, **about)


def test_figure_without_a_yardstick_is_compared_by_itself() -> None:
    (row,) = compare(run_alone(10, 10.1, 9.9), run_alone(5, 5.1, 4.9)).rows
    assert (row.yardstick, row.verdict) == (None, Verdict.WORSE)
    assert (row.old, row.new) == (10, 5)


def test_few_rounds_cannot_tell() -> None:
    assert verdicts(run_alone(10, 10), run_alone(5, 5, 5)) == {"alone": Verdict.UNKNOWN}
    assert verdicts(run_alone(10, 10, 0), run_alone(5, 5, 5)) == {"alone": Verdict.UNKNOWN}


def test_figure_that_is_gone_is_an_alarm_but_not_one_that_was_not_asked_for() -> None:
    old = run_alone(10, 10, 10)
    assert verdicts(old, run_alone(None, None, None)) == {"alone": Verdict.GONE}
    refused = run_of(skipped("loden", "not here", measure="alone"), ALONE)
    assert verdicts(old, refused) == {"alone": Verdict.GONE}
    assert verdicts(old, run_of([], ALONE)) == {}
    assert verdicts(old, run_alone(1, 1, 1, measure=speed(name="new"))) == {}


def with_machine(**changed: Any) -> Run:
    return run_alone(1, 1, 1, machine={**ABOUT["machine"], **changed})


def test_other_machine_or_settings_are_found() -> None:
    assert differences_between(run_alone(1), run_alone(2)) == []
    assert differences_between(with_machine(), with_machine(cpus=4, load_before=9)) == [
        "cpus: 2 → 4"
    ]
    assert differences_between(run_alone(1), run_alone(1, quick=True)) == ["quick: False → True"]
    effort = {**ABOUT["effort"], "tcp_s": 7, "of a new measure": 1}
    assert differences_between(run_alone(1), run_alone(1, effort=effort)) == ["tcp_s: 1 → 7"]
    sites = {"road": {"kernel": {"offloads": {"gears": False, "wings": False}}}}
    assert differences_between(run_alone(1), run_alone(1, sites=sites)) == [
        "road, kernel: offloads: gears: True → False"
    ]


def test_other_versions_are_noted_and_no_obstacle() -> None:
    old, new = with_machine(), with_machine(packages={"loden": "0.2.0"}, commit="f" * 40)
    assert differences_between(old, new) == []
    assert notes_on(old, new) == ["packages: loden: 0.1.0 → 0.2.0"]


def test_comparison_is_told_in_markdown() -> None:
    dice = random.Random(4)
    old = noisy_run(dice, noise=0.01)
    new = noisy_run(dice, noise=0.01, machine=0.8, factors={"m1": 1.5})
    told = to_markdown(compare(old, new, differences=["cpus: 2 → 4"]))

    assert "Figures of loden: **1 worse**, 29 unchanged." in told
    assert "- **not the same machine or settings**: cpus: 2 → 4\n" in told
    assert "- what is not loden went " in told
    (row,) = (line for line in told.splitlines() if line.startswith("| m1 "))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[0] == "m1 (m/s)"
    assert cells[6:] == ["ratio to kernel", "**worse**"]
    assert 45 < float(cells[4].removesuffix(" %")) < 55
    assert "| m2 " not in told
    assert "| m2 " in to_markdown(compare(old, new), all_rows=True)


@pytest.mark.parametrize("percent", ["5%", "20%"])
def test_method_is_told_with_the_threshold_in_force(percent: str) -> None:
    threshold = float(percent[:-1]) / 100
    told = to_markdown(compare(run_alone(1, 1, 1), run_alone(1, 1, 1), threshold))
    assert f"changed by more than {percent}, " in told
