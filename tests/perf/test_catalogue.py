"""Every measure can be taken, and every target of the project is in the catalogue."""

from __future__ import annotations

from typing import Any

import pytest

from perf import bench
from perf.catalogue import CONTENDERS, CURVES, MEASURES, NODE, SCENES
from perf.measure import QUICK, Effort, Scene, Status
from perf.micro.scene import KERNELS
from perf.pair_catalogue import OFFLOADS, PLAIN_NIC, ROUTES, WORKERS, worker_counts

TINY = Effort(
    tcp_s=1,
    trial_s=0.05,
    trials_max=6,
    resolution=0.2,
    pings=50,
    kernel_s=0.001,
    idle_s=0.2,
)


@pytest.mark.netns
@pytest.mark.parametrize(
    ("scene", "contenders"),
    [
        (KERNELS, ("loden", "numpy", "py-radix", "dpkt", "scapy")),
        (OFFLOADS, ("kernel",)),
        (OFFLOADS.narrowed(("tcp1", "cpu-tcp"), ()), ("loden-gso",)),
        (OFFLOADS.narrowed(("latency",), ()), ("loden-busy",)),
        (OFFLOADS.narrowed(("udp-imix", "overload400"), ()), ("wireguard-go", "nebula")),
        (PLAIN_NIC, ("kernel",)),
        (WORKERS, ("loden",)),
        (ROUTES.narrowed(("routes10", "routes1000"), ()), ("loden",)),
        pytest.param(NODE, ("loden",), marks=pytest.mark.etcd),
    ],
    ids=["kernels", "kernel", "gso", "latency", "encrypting", "plain", "workers", "routes", "node"],
)
def test_tiny_run_of_every_measure(scene: Scene[Any], contenders: tuple[str, ...]) -> None:
    record = bench.run([scene.narrowed((), contenders)], TINY, 1, bench.Watch())

    assert {o.contender for o in record.outcomes} == set(contenders)
    assert {o.measure for o in record.outcomes} == {m.name for m in scene.measures}
    for outcome in record.outcomes:
        if outcome.status is not Status.SKIPPED:  # no tunnel GSO, or not installed
            assert outcome.reading is not None, f"{outcome.measure}: {outcome.why_not}"
            assert outcome.reading.value > 0
            assert outcome.reading.details.get("duplicates", 0) == 0


def test_names_are_unique_and_known() -> None:
    names = [*(measure.name for measure in MEASURES), *(curve.name for curve in CURVES)]
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
        ("routes1000000", 0.95),
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


def test_quick_run_has_every_target_against_the_kernel_and_takes_less_than_two_minutes() -> None:
    scenes = [scene.quickened() for scene in SCENES]
    taken = {measure.name: measure.contenders for scene in scenes for measure in scene.measures}

    assert bench.estimate_s(scenes, QUICK, 1) < 110
    left_out = {"tcp1-reverse", "tcp4-reverse", "tcp1-reverse-plain", "tcp4-reverse-plain"}
    left_out |= {"routes1000000"}
    for measure in MEASURES:
        assert set(measure.quick) <= set(measure.contenders)
        for target in measure.targets:
            if measure.name not in left_out:
                assert target.contender in taken[measure.name]
                assert (target.than or target.contender) in taken[target.of or measure.name]


@pytest.mark.parametrize(
    ("cpus", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_workers_are_doubled_up_to_the_number_of_cpus(cpus: int, counts: list[int]) -> None:
    assert worker_counts(cpus) == counts


@pytest.mark.parametrize(
    ("curve", "xs"),
    [
        ("udp-size", [64, 256, 512, 1024, 1300]),
        ("udp-flows", [1, 8, 64, 300, 1000]),
        ("routes", [10, 1000, 100_000, 1_000_000]),
    ],
)
def test_curves_go_as_far_as_promised(curve: str, xs: list[float]) -> None:
    points = [p for scene in SCENES for m in scene.measures for p in m.points]
    assert sorted(point.x for point in points if point.curve.name == curve) == xs
