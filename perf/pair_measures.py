"""What is measured between two pods: throughput of TCP, rates of UDP, latency.

Every function takes a `Pair` and an `Effort`, and returns a `Reading`; it raises MeasurementError
or AgentError when there is nothing to read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from perf.far_network import FAR_NETWORK
from perf.measure import Effort, Reading
from perf.pair import Ladder, Pair
from perf.rate_search import Trial, find_loss_free_rate, send_and_count
from perf.traffic import MeasurementError, measure_tcp

PairMeasurement = Callable[[Pair, Effort], Reading]

PING_PORT = 7901
PING_S = 20.0
"""All questions of an idle line are asked in less."""
ANSWERED_IDLE, ANSWERED_LOADED = 0.99, 0.5
"""At least so many of the questions; a full queue loses some."""
SETTLE_S = 0.5
"""A load needs so long to connect, and TCP to find its rate."""
LONGER_S = 2
"""A load lasts so much longer than the questions beside it."""


def at(x: int, take: PairMeasurement) -> Callable[[Ladder, Effort], Reading]:
    """The same on the pair of a ladder that stands at `x`."""
    return lambda ladder, effort: take(ladder[x], effort)


def tcp(streams: int = 1, reverse: bool = False) -> PairMeasurement:
    """Gbit/s of payload at the receiver, by iperf3."""

    def take(pair: Pair, effort: Effort) -> Reading:
        result = measure_tcp(
            pair.near, pair.far, seconds=effort.tcp_s, streams=streams, reverse=reverse
        )
        return Reading(result.gbit_per_s, {"retransmits": result.retransmits})

    return take


def udp(*sizes: int, flows: int = 1) -> PairMeasurement:
    """Thousand packets a second: the highest rate with next to no loss.

    `sizes`: of the payloads in bytes, in turn.
    """

    def take(pair: Pair, effort: Effort) -> Reading:
        return _search(pair, effort, pair.far.address, sizes, flows=flows)

    return take


def udp_spread(payload_bytes: int) -> PairMeasurement:
    """As `udp`, to addresses all over FAR_NETWORK: nearly each packet needs another route."""

    def take(pair: Pair, effort: Effort) -> Reading:
        spread = FAR_NETWORK.num_addresses
        return _search(pair, effort, FAR_NETWORK[0], [payload_bytes], spread=spread)

    return take


def _search(
    pair: Pair,
    effort: Effort,
    address: IPv4Address | IPv6Address,
    sizes: Sequence[int],
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
            sizes=sizes,
            flows=flows,
            rate_pps=rate_pps,
            seconds=effort.trial_s,
            spread=spread,
        )

    best, trials = find_loss_free_rate(
        attempt, resolution=effort.resolution, trials_max=effort.trials_max
    )
    details = {"loss": best.loss, "uncounted": best.uncounted, "duplicates": best.duplicates}
    details["trials"] = trials
    if not spread:  # else no two packets have an order
        details["reordered"] = best.reordered
    return Reading(best.received_pps / 1000, details)


def udp_offered(offered_kpps: float, payload_bytes: int) -> PairMeasurement:
    """Thousand packets a second that arrive of those that are offered, however many are lost."""

    def take(pair: Pair, effort: Effort) -> Reading:
        trial = send_and_count(
            *pair.agents(),
            pair.far.address,
            sizes=[payload_bytes],
            rate_pps=offered_kpps * 1000,
            seconds=effort.trial_s,
        )
        return Reading(
            trial.received_pps / 1000,
            {
                "offered": trial.sent_pps / 1000,
                "loss": trial.loss,
                "uncounted": trial.uncounted,
                "duplicates": trial.duplicates,
                "reordered": trial.reordered,
            },
        )

    return take


def latency(pair: Pair, effort: Effort) -> Reading:
    """Microseconds from question to answer, median: one byte over UDP, one at a time."""
    return _latency_reading(_ping_pong(pair, effort.pings, PING_S), ANSWERED_IDLE)


def latency_under_tcp(mbit_per_s: float = 0) -> PairMeasurement:
    """As `latency`, beside a TCP stream of that rate; 0: as fast as it can."""

    def take(pair: Pair, effort: Effort) -> Reading:
        pair.agents()  # before the load begins
        with ThreadPoolExecutor(1) as beside:
            load = beside.submit(
                measure_tcp,
                pair.near,
                pair.far,
                seconds=effort.tcp_s + LONGER_S,
                mbit_per_s=mbit_per_s,
            )
            time.sleep(SETTLE_S)
            answers = _ping_pong(pair, effort.pings, float(effort.tcp_s))
            if load.done() and load.exception() is None:
                raise MeasurementError("the load was over before the last answer")
            loaded = load.result()
        return _latency_reading(answers, ANSWERED_LOADED, {"load Gbit/s": loaded.gbit_per_s})

    return take


def _ping_pong(pair: Pair, count: int, seconds: float) -> dict[str, Any]:
    near, far = pair.agents()
    end: dict[str, Any] = {"address": str(pair.far.address), "port": PING_PORT}
    far.ask("echo", **end)
    try:
        return near.ask("ping_pong", **end, count=count, seconds=seconds)
    finally:
        far.ask("quiet")


def _latency_reading(
    answers: dict[str, Any], answered_at_least: float, details: dict[str, float] | None = None
) -> Reading:
    times_ns, asked = answers["times_ns"], answers["asked"]
    if len(times_ns) < answered_at_least * asked:
        raise MeasurementError(f"{len(times_ns)} of {asked} questions were answered")
    p50, p90, p99 = (percentile(times_ns, share) / 1000 for share in (0.5, 0.9, 0.99))
    spread = {"p90": p90, "p99": p99, "max": times_ns[-1] / 1000}
    return Reading(p50, {**spread, "lost": asked - len(times_ns), **(details or {})})


def percentile(ascending: list[int], share: float) -> int:
    """The smallest value that at least `share` of all do not exceed."""
    return ascending[max(0, -int(-share * len(ascending) // 1) - 1)]
