"""A measurement gives figures, or the tool's own words; never a zero that means "failed"."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from perf.topology import Topology
from perf.traffic import MeasurementError, measure_tcp, measure_udp, ping

pytestmark = pytest.mark.netns

NOBODY = IPv4Address("192.168.77.99")


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with Topology() as topology:
        yield topology


def test_ping_counts_and_times(topology: Topology) -> None:
    near, far = topology.hosts
    result = ping(near, far.address, count=5, interval_s=0.01)

    assert (result.sent, result.received, result.errors, result.loss) == (5, 5, 0, 0.0)
    assert result.round_trip is not None
    times = result.round_trip
    assert 0 < times.min_ms <= times.mean_ms <= times.max_ms


def test_ping_without_reply_is_all_lost_and_has_no_time(topology: Topology) -> None:
    result = ping(topology.hosts[0], NOBODY, count=2, timeout_s=0.1)

    assert (result.received, result.loss, result.round_trip) == (0, 1.0, None)


def test_ping_counts_packets_that_do_not_fit(topology: Topology) -> None:
    near, far = topology.hosts
    result = ping(near, far.address, count=2, packet_bytes=1501, dont_fragment=True)

    assert (result.received, result.errors) == (0, 2)


def test_ping_that_cannot_send_says_why(topology: Topology) -> None:
    pod = topology.hosts[0].add_pod("172.17.10.0/24", mtu_bytes=1450)
    pod.ip("route del default")

    with pytest.raises(MeasurementError, match="Network is unreachable"):
        ping(pod, NOBODY)


def test_tcp_is_measured_both_ways(topology: Topology) -> None:
    near, far = topology.hosts
    for reverse in (False, True):
        result = measure_tcp(near, far, streams=2, reverse=reverse)
        assert result.gbit_per_s > 0.1
        assert result.streams == 2
        assert 0.9 < result.seconds < 2


def test_tcp_to_nobody_raises_the_tool_s_words(topology: Topology) -> None:
    near, far = topology.hosts
    with pytest.raises(MeasurementError, match=r"192\.168\.77\.99: unable to connect"):
        measure_tcp(near, far, address=NOBODY)


def test_taken_port_raises_the_server_s_words(topology: Topology) -> None:
    near, far = topology.hosts
    with far.entered():
        taken = socket.create_server(("0.0.0.0", 5201))
    try:
        with pytest.raises(MeasurementError, match="in use"):
            measure_tcp(near, far)
    finally:
        taken.close()


def test_udp_at_a_rate_loses_next_to_nothing(topology: Topology) -> None:
    near, far = topology.hosts
    result = measure_udp(near, far, payload_bytes=64, mbit_per_s=1)

    assert result.sent == pytest.approx(1e6 / 8 / 64, rel=0.2)
    assert 0 <= result.loss < 0.1
    assert result.received_kpps == pytest.approx(result.received / result.seconds / 1000)


def test_udp_that_is_lost_on_the_way_shows_as_loss(topology: Topology) -> None:
    near, far = topology.hosts
    # 64 bytes of payload are 106 on the wire: 1 Mbit/s of payload is 1.7 there.
    shaper = ["tbf", "rate", "1mbit", "burst", "2000", "limit", "4000"]
    near.run(["tc", "qdisc", "add", "dev", "eth0", "root", *shaper])
    try:
        result = measure_udp(near, far, payload_bytes=64, mbit_per_s=1)
    finally:
        near.run(["tc", "qdisc", "del", "dev", "eth0", "root"])

    assert 0.2 < result.loss < 0.6
