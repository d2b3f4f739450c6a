"""Readings are interleaved, failures say so, slower is shown as slower, all is taken down."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from perf import bench
from perf.contenders import connect_bare
from perf.measure import (
    Curve,
    Effort,
    Measure,
    NotHere,
    Outcome,
    Point,
    Reading,
    Scene,
    Status,
)
from perf.pair import pair_of
from perf.pair_measures import latency_under_tcp, tcp, udp, udp_offered
from perf.results import Results
from perf.topology import Topology

TINY = Effort(tcp_s=1, trial_s=0.05, trials_max=6, resolution=0.2, pings=50)


@dataclass
class FakeSite:
    name: str
    value: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class FakeScene:
    """A scene of sites that only take notes."""

    notes: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def site(self, name: str, value: float) -> Iterator[FakeSite]:
        self.notes.append(f"build {name}")
        try:
            yield FakeSite(name, value, {"made by": name})
        finally:
            self.notes.append(f"close {name}")

    def scene(self, *names: str, **takes: Callable[[FakeSite, Effort], Reading]) -> Scene[FakeSite]:
        return Scene(
            "fake",
            "a fake",
            {
                name: lambda effort, n=name, v=value: self.site(n, float(v))  # type: ignore[misc]
                for value, name in enumerate(names, 1)
            },
            tuple(
                Measure(name, name, "u", names, take, lambda effort: 2.0)
                for name, take in takes.items()
            ),
        )

    def note(self, site: FakeSite, effort: Effort) -> Reading:
        self.notes.append(site.name)
        return Reading(site.value)


def test_contenders_take_turns_and_each_round_begins_with_another() -> None:
    fake = FakeScene()
    record = bench.run([fake.scene("a", "b", "c", size=fake.note)], TINY, 3, bench.Watch())

    assert "".join(note for note in fake.notes if len(note) == 1) == "abcbcacab"
    assert fake.notes[-3:] == ["close c", "close b", "close a"]
    assert record.facts["fake"]["b"] == {"made by": "b"}
    assert Results(record.outcomes).values("size", "b") == {0: 2.0, 1: 2.0, 2: 2.0}


def test_failure_is_reported_as_failed_and_the_rest_goes_on() -> None:
    def take(site: FakeSite, effort: Effort) -> Reading:
        if site.name == "b":
            raise OSError("it burns")
        return Reading(site.value)

    record = bench.run([FakeScene().scene("a", "b", "c", size=take)], TINY, 1, bench.Watch())

    assert record.outcomes == [
        Outcome("size", "a", 0, Status.MEASURED, Reading(1.0)),
        Outcome("size", "b", 0, Status.FAILED, None, "it burns"),
        Outcome("size", "c", 0, Status.MEASURED, Reading(3.0)),
    ]


@pytest.mark.parametrize(
    ("error", "status"),
    [(NotHere("this kernel is too old"), Status.SKIPPED), (RuntimeError("no"), Status.FAILED)],
)
def test_contender_that_cannot_be_built_has_that_for_each_reading(
    error: Exception, status: Status
) -> None:
    fake = FakeScene()
    scene = fake.scene("a", "broken", size=fake.note, weight=fake.note)

    def fail(effort: Effort) -> Any:
        raise error

    scene = replace(scene, sites={**scene.sites, "broken": fail})
    outcomes = bench.run([scene], TINY, 1, bench.Watch()).outcomes

    assert [o for o in outcomes if o.contender == "broken"] == [
        Outcome("size", "broken", 0, status, None, str(error)),
        Outcome("weight", "broken", 0, status, None, str(error)),
    ]
    assert sum(o.status is Status.MEASURED for o in outcomes) == 2


def test_interruption_takes_down_what_was_built() -> None:
    fake = FakeScene()

    def interrupt(site: FakeSite, effort: Effort) -> Reading:
        raise SystemExit(130)

    with pytest.raises(SystemExit):
        bench.run([fake.scene("a", "b", size=interrupt)], TINY, 1, bench.Watch())

    assert fake.notes == ["build a", "build b", "close b", "close a"]


def test_narrowing_leaves_out_what_is_not_asked_for() -> None:
    fake = FakeScene()
    scene = fake.scene("a", "b", size=fake.note, weight=fake.note)

    assert [m.name for m in scene.narrowed(("size",), ()).measures] == ["size"]
    assert bench.contenders_of(scene.narrowed((), ("b",))) == ["b"]
    assert bench.contenders_of(scene.narrowed(("colour",), ())) == []
    assert len(list(bench.turns(scene.narrowed((), ("b",)), 3))) == 6

    curve = Curve("by-weight", "size by weight", "weight")
    size, weight = scene.measures
    scene = replace(scene, measures=(replace(size, points=(Point(curve, 1),)), weight))
    assert [m.name for m in scene.narrowed(("by-weight",), ()).measures] == ["size"]


def test_quick_run_leaves_out_what_is_not_marked() -> None:
    fake = FakeScene()
    scene = fake.scene("a", "b", "c", size=fake.note, weight=fake.note)
    size, weight = scene.measures
    scene = replace(scene, measures=(replace(size, quick=("a", "b")), weight))

    assert [(m.name, m.contenders) for m in scene.quickened().measures] == [("size", ("a", "b"))]
    assert [m.contenders for m in scene.quickened(("c",)).measures] == [("c",)]
    assert bench.contenders_of(scene.quickened()) == ["a", "b"]


def test_what_is_done_adds_up_to_what_was_estimated() -> None:
    fake = FakeScene()
    scene = fake.scene("a", "b", size=fake.note)
    done: list[float] = []
    bench.run([scene], TINY, 2, bench.Watch(done=done.append))

    assert sum(done) == bench.estimate_s([scene], TINY, 2) == 3.0 + 2 * 2 * 2.0


def connect_slowly(topology: Topology, directory: Path) -> dict[str, Any]:
    """As connect_bare, over a wire of 2 Mbit/s."""
    facts = connect_bare(topology, directory)
    shaper = ["tbf", "rate", "2mbit", "burst", "1600", "limit", "30000"]
    for host in topology.hosts:
        host.run(["tc", "qdisc", "add", "dev", "eth0", "root", *shaper])
    return facts


@pytest.mark.netns
def test_contender_slowed_on_purpose_shows_slower() -> None:
    names = ("as it is", "slowed")
    scene = Scene(
        "slow",
        "one wire is slower",
        {
            "as it is": lambda effort: pair_of(connect_bare),
            "slowed": lambda effort: pair_of(connect_slowly),
        },
        tuple(
            Measure(name, name, "", names, take, lambda effort: 1.0)
            for name, take in (
                ("tcp", tcp()),
                ("udp", udp(1000)),
                ("offered", udp_offered(10, 1000)),
            )
        ),
    )
    record = bench.run([scene], TINY, 1, bench.Watch())

    assert [o.why_not for o in record.outcomes if o.status is not Status.MEASURED] == []
    results = Results(record.outcomes)
    ratios = {m.name: results.ratio(m.name, "slowed", "as it is") for m in scene.measures}
    medians = {name: ratio.median for name, ratio in ratios.items() if ratio is not None}
    assert medians["tcp"] < 0.2
    assert medians["udp"] < 0.2
    assert medians["offered"] < 0.5  # it is 83 Mbit/s
    assert results.details("offered", "slowed")["loss"] > 0.5
    slowed = results.spread("tcp", "slowed")
    assert slowed is not None
    assert 0.0005 < slowed.median < 0.002


@pytest.mark.netns
def test_answers_behind_a_queue_that_tcp_fills_take_their_time() -> None:
    with pair_of(connect_slowly) as pair:
        reading = latency_under_tcp()(pair, TINY)

    # The queue is 30,000 bytes long, which take 120 ms.
    assert 10_000 < reading.value < 1_000_000
    assert 0 < reading.details["load Gbit/s"] < 0.002
