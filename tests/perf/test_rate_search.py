"""The search finds the highest rate without loss, in a bounded number of trials."""

from __future__ import annotations

import pytest

from perf.contenders import connect_bare
from perf.pair import pair_of
from perf.rate_search import Trial, find_loss_free_rate, send_and_count
from perf.traffic import MeasurementError


class Link:
    """Carries up to `capacity_pps` of what a sender offers, which can make `sender_pps`."""

    def __init__(self, capacity_pps: float, sender_pps: float = 500_000.0) -> None:
        self.capacity_pps = capacity_pps
        self.sender_pps = sender_pps
        self.spoiled: set[int] = set()
        """Trials that lose packets for no reason."""
        self.offered: list[float | None] = []

    def __call__(self, rate_pps: float | None) -> Trial:
        self.offered.append(rate_pps)
        sent = min(rate_pps or self.sender_pps, self.sender_pps)
        received = min(sent, self.capacity_pps)
        if len(self.offered) - 1 in self.spoiled:
            received *= 0.9
        return Trial(rate_pps, round(sent), round(received), 0, 0, 1.0)


@pytest.mark.parametrize("capacity_pps", [1_000, 40_000, 123_456, 499_000])
def test_highest_rate_is_found(capacity_pps: float) -> None:
    best, trials = find_loss_free_rate(Link(capacity_pps), resolution=0.02, trials_max=40)

    assert best.received_pps == pytest.approx(capacity_pps, rel=0.025)
    assert best.loss <= 0.001
    assert trials <= 40


def test_nothing_lost_at_full_speed_ends_the_search() -> None:
    link = Link(capacity_pps=600_000)
    best, trials = find_loss_free_rate(link, resolution=0.02, trials_max=40)

    assert (best.received_pps, trials, link.offered) == (500_000, 3, [None, None, None])


def test_sender_that_is_faster_now_and_then_has_its_usual_rate() -> None:
    speeds = iter([100_000, 250_000, 110_000])
    best, _ = find_loss_free_rate(
        lambda rate_pps: Trial(rate_pps, sent := next(speeds), sent, 0, 0, 1.0),
        resolution=0.02,
        trials_max=9,
    )
    assert best.received_pps == 110_000


def test_full_speed_that_passes_only_by_chance_is_not_the_result() -> None:
    offered: list[float | None] = []

    def attempt(rate_pps: float | None) -> Trial:
        offered.append(rate_pps)
        sent = round(rate_pps or 100_000)
        return Trial(rate_pps, sent, min(sent, 100_000 if len(offered) == 1 else 50_000), 0, 0, 1)

    best, trials = find_loss_free_rate(attempt, resolution=0.02, trials_max=20)

    assert offered[:3] == [None, None, None]
    assert best.received_pps == pytest.approx(50_000, rel=0.03)
    assert trials == len(offered)


def test_one_spoiled_trial_does_not_spoil_the_result() -> None:
    link = Link(capacity_pps=100_000)
    link.spoiled = {1}
    best, _ = find_loss_free_rate(link, resolution=0.02, trials_max=40)

    assert best.received_pps == pytest.approx(100_000, rel=0.025)


def test_number_of_trials_is_bounded() -> None:
    link = Link(capacity_pps=100_000)
    best, trials = find_loss_free_rate(link, resolution=1e-9, trials_max=6)

    assert trials == len(link.offered) == 6
    assert 0 < best.received_pps <= 100_000


def test_link_that_always_loses_has_no_rate() -> None:
    link = Link(capacity_pps=100_000)
    link.spoiled = set(range(100))
    with pytest.raises(MeasurementError, match=r"more than 0\.1% is lost even at [\d,]+ packets/s"):
        find_loss_free_rate(link, resolution=0.02, trials_max=8)


def test_link_that_carries_nothing_to_speak_of_has_no_rate() -> None:
    link = Link(capacity_pps=20)
    with pytest.raises(MeasurementError, match="is lost even at 500,000 packets/s"):
        find_loss_free_rate(link, resolution=0.02, trials_max=8)
    assert len(link.offered) == 1


@pytest.mark.netns
def test_packets_lost_on_purpose_are_reported_lost() -> None:
    with pair_of(connect_bare) as pair:
        near, far = pair.agents()

        def attempt(rate_pps: float | None) -> Trial:
            address = pair.far.address
            return send_and_count(near, far, address, sizes=[64], rate_pps=rate_pps, seconds=0.2)

        assert attempt(2000).loss == 0
        # 64 bytes of payload are 106 on the wire: 1 Mbit/s carries 1,179 packets a second.
        shaper = ["tbf", "rate", "1mbit", "burst", "2000", "limit", "4000"]
        pair.near.run(["tc", "qdisc", "add", "dev", "eth0", "root", *shaper])

        assert 0.5 < attempt(5000).loss < 1
        best, _ = find_loss_free_rate(attempt, resolution=0.1, trials_max=12)
        assert best.received_pps < 1600

        pair.far.run(["ip", "link", "set", "eth0", "down"])
        with pytest.raises(MeasurementError, match=r"none of \d+ UDP packets .* arrived"):
            attempt(5000)
