"""What is measured between two pods: throughput of TCP, rates of UDP, latency.

Every function takes a `Pair` and an `Effort`, and returns a `Reading`; it raises MeasurementError
or AgentError when there is nothing to read.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from perf.loden_contender import FAR_NETWORK
from perf.measure import Effort, Reading
from perf.pair import Pair
from perf.rate_search import Trial, find_loss_free_rate, send_and_count
from perf.traffic import MeasurementError, measure_tcp

PairMeasurement = Callable[[Pair, Effort], Reading]

PING_PORT = 7901
ANSWERED_AT_LEAST = 0.99


def tcp(streams: int = 1, reverse: bool = False) -> PairMeasurement:
    """Gbit/s of payload at the receiver, by iperf3."""

    def take(pair: Pair, effort: Effort) -> Reading:
        result = measure_tcp(
            pair.near, pair.far, seconds=effort.tcp_s, streams=streams, reverse=reverse
        )
        return Reading(result.gbit_per_s, {"retransmits": result.retransmits})

    return take


def udp(payload_bytes: int, flows: int = 1) -> PairMeasurement:
    """Thousand packets a second: the highest rate with next to no loss."""

    def take(pair: Pair, effort: Effort) -> Reading:
        return _search(pair, effort, pair.far.address, payload_bytes, flows=flows)

    return take


def udp_spread(payload_bytes: int) -> PairMeasurement:
    """As `udp`, to addresses all over FAR_NETWORK: nearly each packet needs another route."""

    def take(pair: Pair, effort: Effort) -> Reading:
        spread = FAR_NETWORK.num_addresses
        return _search(pair, effort, FAR_NETWORK[0], payload_bytes, spread=spread)

    return take


def _search(
    pair: Pair,
    effort: Effort,
    address: IPv4Address | IPv6Address,
    payload_bytes: int,
    *,
    flows: int = 1,
    spread: int = 0,
) -> Reading:
    near, far = pair.agents()

    def attempt(rate_pps: float | None) -> Trial:
        return send_and_count(
            near,
            far,
            address,
            payload_bytes=payload_bytes,
            flows=flows,
            rate_pps=rate_pps,
            seconds=effort.trial_s,
            spread=spread,
        )

    best, trials = find_loss_free_rate(
        attempt, resolution=effort.resolution, trials_max=effort.trials_max
    )
    details = {"loss": best.loss, "duplicates": best.duplicates, "trials": trials}
    if not spread:  # else no two packets have an order
        details["reordered"] = best.reordered
    return Reading(best.received_pps / 1000, details)


def latency(pair: Pair, effort: Effort) -> Reading:
    """Microseconds from question to answer, median: one byte over UDP, one at a time."""
    near, far = pair.agents()
    end = {"address": str(pair.far.address), "port": PING_PORT}
    far.ask("echo", **end)
    try:
        times_ns = near.ask("ping_pong", **end, count=effort.pings)["times_ns"]
    finally:
        far.ask("quiet")
    if len(times_ns) < ANSWERED_AT_LEAST * effort.pings:
        raise MeasurementError(f"{len(times_ns)} of {effort.pings} questions were answered")
    p50, p90, p99 = (percentile(times_ns, share) / 1000 for share in (0.5, 0.9, 0.99))
    return Reading(p50, {"p90": p90, "p99": p99, "lost": effort.pings - len(times_ns)})


def percentile(ascending: list[int], share: float) -> int:
    """The smallest value that at least `share` of all do not exceed."""
    return ascending[max(0, -int(-share * len(ascending) // 1) - 1)]
