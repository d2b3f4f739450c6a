"""Every measure can be taken, and every target of the project is in the catalogue."""

from __future__ import annotations

from typing import Any

import pytest

from perf import bench
from perf.catalogue import CONTENDERS, LOOKUPS, MEASURES, NODE, OFFLOADS, PLAIN_NIC, ROUTES, SCENES
from perf.measure import QUICK, Effort, Scene, Status

TINY = Effort(
    tcp_s=1,
    trial_s=0.05,
    trials_max=3,
    resolution=0.2,
    pings=50,
    lookups=1 << 20,
    idle_s=0.2,
    routes=1000,
)


@pytest.mark.netns
@pytest.mark.parametrize(
    ("scene", "contenders"),
    [
        (LOOKUPS, ("loden",)),
        (OFFLOADS.narrowed(("latency",), ()), ("kernel", "loden-busy")),
        (OFFLOADS, ("loden-gso",)),
        (PLAIN_NIC, ("kernel",)),
        (ROUTES, ("loden-many",)),
        pytest.param(NODE, ("loden",), marks=pytest.mark.etcd),
    ],
    ids=["lookups", "latency", "offloads", "plain", "routes", "node"],
)
def test_tiny_run_of_every_measure(scene: Scene[Any], contenders: tuple[str, ...]) -> None:
    record = bench.run([scene.narrowed((), contenders)], TINY, 1, bench.Watch())

    assert {o.contender for o in record.outcomes} == set(contenders)
    for outcome in record.outcomes:
        if outcome.status is not Status.SKIPPED:  # an older kernel may have no tunnel GSO
            assert outcome.reading is not None, f"{outcome.measure}: {outcome.why_not}"
            assert outcome.reading.value > 0
            assert outcome.reading.details.get("duplicates", 0) == 0


def test_names_are_unique_and_known() -> None:
    names = [measure.name for measure in MEASURES]
    assert len(set(names)) == len(names)
    for scene in SCENES:
        assert set(bench.contenders_of(scene)) == set(scene.sites) <= set(CONTENDERS)
        for measure in scene.measures:
            assert set(measure.contenders) <= set(scene.sites)
            involved = {measure.reference, *(t.than for t in measure.targets)} - {None}
            involved |= {t.contender for t in measure.targets}
            assert involved <= set(measure.contenders), measure.name


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("tcp1", 0.9),
        ("tcp4", 0.9),
        ("tcp1-plain", 0.9),
        ("udp64", 2.0),
        ("udp1300", 1.5),
        ("udp64-flows", 1.5),
        ("latency", 1.5),
        ("routes", 0.95),
        ("lookup-leases", 500),
        ("lookup-random", 60),
        ("idle", 0.5),
        ("memory", 40),
        ("start", 3),
    ],
)
def test_targets_are_those_of_the_project(name: str, limit: float) -> None:
    (measure,) = (measure for measure in MEASURES if measure.name == name)
    assert measure.targets[0].limit == limit


def test_quick_run_is_estimated_at_less_than_two_minutes() -> None:
    assert bench.estimate_s(SCENES, QUICK, 1) < 120
