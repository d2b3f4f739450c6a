"""What cannot be measured between two pods is an error with a reason, never a 0."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perf.contenders import connect_bare
from perf.cpu_measures import cpu_per_million_packets
from perf.measure import Effort
from perf.pair import Pair, pair_of
from perf.pair_measures import (
    PairMeasurement,
    latency,
    percentile,
    udp,
    udp_offered,
    udp_spread,
)
from perf.traffic import MeasurementError

TINY = Effort(tcp_s=1, trial_s=0.02, trials_max=3, pings=2)


@pytest.fixture(scope="module")
def cut_pair() -> Iterator[Pair]:
    """The wire is unplugged."""
    with pair_of(connect_bare) as pair:
        pair.agents()
        pair.far.run(["ip", "link", "set", "eth0", "down"])
        yield pair


@pytest.mark.netns
@pytest.mark.parametrize(
    ("take", "said"),
    [
        (udp(64, flows=4), "none of .* arrived"),
        (udp_spread(64), "none of .* arrived"),
        (udp_offered(1, 64), "none of .* arrived"),
        (latency, "0 of 2 questions were answered"),
        (cpu_per_million_packets(1, 64), "none of .* arrived"),
    ],
    ids=["udp", "udp-spread", "overload", "latency", "cpu"],
)
def test_cut_wire_gives_no_reading(cut_pair: Pair, take: PairMeasurement, said: str) -> None:
    with pytest.raises(MeasurementError, match=said):
        take(cut_pair, TINY)


@pytest.mark.parametrize(
    ("share", "value"), [(0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100), (0.001, 1)]
)
def test_percentile_is_the_smallest_that_covers_the_share(share: float, value: int) -> None:
    assert percentile(list(range(1, 101)), share) == value
