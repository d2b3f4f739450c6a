"""What packets cost is told by whom, and a contender that burns CPU shows it."""

from __future__ import annotations

import pytest

from perf.contenders import connect_bare
from perf.cpu_measures import cpu_per_gigabyte, cpu_per_million_packets
from perf.measure import Effort
from perf.pair import pair_of

TINY = Effort(tcp_s=1)


@pytest.mark.netns
def test_contender_that_burns_cpu_costs_more_and_is_named() -> None:
    kpps = 2
    take = cpu_per_million_packets(kpps, 64)
    with pair_of(connect_bare) as pair:
        before = take(pair, TINY)
        pair.hosts[1].popen(["sh", "-c", "while :; do :; done"])
        burning = take(pair, TINY)
        tcp = cpu_per_gigabyte(pair, TINY)

    # A second of 2,000 packets: each 0.1 CPU seconds are 50 a million.
    assert burning.details["far sh user"] > 50
    assert burning.value > before.value + 50
    assert "far sh user" not in before.details
    assert before.details["near perf.agent system"] > 0
    for reading in (before, burning):
        modes = reading.details["user"] + reading.details["system"]
        assert modes == pytest.approx(reading.value)
    assert tcp.details["far sh user"] > 0
    assert tcp.details["near iperf3 system"] > 0
    assert tcp.details["far iperf3 system"] > 0
