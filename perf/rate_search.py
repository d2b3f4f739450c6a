"""The highest rate without loss, in the manner of RFC 2544 §26.1, and one trial of it.

RFC 2544 asks for trials of 60 seconds and no loss at all; on a machine whose two ends and wire
share two CPUs with everything else, that measures the rest.  Here up to LOSS_MAX is allowed,
trials are short, and a rate is given up when it has failed twice.  The search is bounded by a
number of trials.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from perf.agent_client import AgentClient
from perf.traffic import MeasurementError

LOSS_MAX = 0.001
TRIES = 2
AT_FULL_SPEED = 3
LEAST_PPS = 100
"""No rate below that is looked for: what carries less carries nothing."""
UDP_PORT = 7900
MOST_PPS = 2_000_000
"""A sender is stopped at this average: how far a receiver has to be able to count."""

_trial_numbers = itertools.count(1)


@dataclass(frozen=True)
class Trial:
    """What was sent in one go, and what became of it."""

    offered_pps: float | None
    """None: as fast as the sender could."""
    sent: int
    received: int
    """Each packet once."""
    duplicates: int
    reordered: int
    """Those that came after a later one of their flow."""
    seconds: float
    """From the first packet to the last one, at the end where that is longer: the clocks of two
    machines have nothing in common."""
    uncounted: int = 0
    """Of those lost: how many the counter was too slow for."""

    @property
    def loss(self) -> float:
        """Between 0 and 1."""
        return 1 - self.received / self.sent

    @property
    def received_pps(self) -> float:
        return self.received / self.seconds

    @property
    def sent_pps(self) -> float:
        return self.sent / self.seconds


def send_and_count(
    sender: AgentClient,
    receiver: AgentClient,
    address: IPv4Address | IPv6Address,
    *,
    sizes: Sequence[int],
    flows: int = 1,
    rate_pps: float | None = None,
    seconds: float = 1.0,
    spread: int = 0,
) -> Trial:
    """One trial to `address` of the receiver.

    `sizes`: of the payloads in bytes, in turn; `spread`: over so many addresses from that one on.

    Raises AgentError, and MeasurementError if nothing arrives at all.
    """
    trial = next(_trial_numbers)
    most = int(seconds * MOST_PPS)
    same: dict[str, Any] = {
        "address": str(address),
        "port": UDP_PORT,
        "flows": flows,
        "trial": trial,
    }
    same |= {"sizes": sizes, "most": most}
    receiver.ask("receive", **(same | {"address": "0.0.0.0"} if spread else same))
    try:
        sent = sender.ask("send", **same, rate_pps=rate_pps or 0.0, seconds=seconds, spread=spread)
    except BaseException:
        receiver.ask("quiet")
        raise
    got = receiver.ask("received", sent=sent["sent"])
    if got["received"] == 0:
        raise MeasurementError(f"none of {sent['sent']} UDP packets to {address} arrived")
    return Trial(
        offered_pps=rate_pps,
        sent=sent["sent"],
        received=got["received"],
        duplicates=got["duplicates"],
        reordered=got["reordered"],
        seconds=max(sent["ended_ns"] - sent["begun_ns"], got["last_ns"] - got["first_ns"]) / 1e9,
        uncounted=got["uncounted"],
    )


def find_loss_free_rate(
    attempt: Callable[[float | None], Trial],
    *,
    resolution: float,
    trials_max: int,
    loss_max: float = LOSS_MAX,
) -> tuple[Trial, int]:
    """The best trial with at most `loss_max` loss, and the number of trials it took.

    The first one is as fast as possible.  If nothing is lost there, the sender is the limit, and
    the median of AT_FULL_SPEED such trials is the result: they differ by the CPUs their flows come
    to.  Else the search halves (as a ratio) what lies between a rate that passed and one that
    failed, and ends when they are within `resolution` of each other.  Raises MeasurementError if no
    trial passes.
    """
    first, tried = attempt(None), 1
    if first.loss <= loss_max:
        trials = [first, *(attempt(None) for _ in range(AT_FULL_SPEED - 1))]
        passed = [trial for trial in trials if trial.loss <= loss_max]
        if 2 * len(passed) > AT_FULL_SPEED:
            passed.sort(key=lambda trial: trial.received_pps)
            return passed[(len(passed) - 1) // 2], AT_FULL_SPEED
        first, tried = trials[-1], AT_FULL_SPEED
    best: Trial | None = None
    high = first.sent_pps
    rate = min(first.received_pps, high / (1 + resolution))  # what came through is a good guess
    while tried < trials_max and rate >= LEAST_PPS and (best is None or high > rate):
        for _ in range(TRIES):
            trial = attempt(rate)
            tried += 1
            if trial.loss <= loss_max or tried == trials_max:
                break
        if trial.loss > loss_max:
            high = rate
        elif best is None or trial.received_pps > best.received_pps:
            best = trial
        if best is None:
            rate = high * 0.7
        elif high / best.received_pps < 1 + resolution or trial.sent_pps < 0.98 * rate:
            break  # close enough, or the sender cannot send faster
        else:
            rate = (best.received_pps * high) ** 0.5
    if best is None:
        raise MeasurementError(f"more than {loss_max:.1%} is lost even at {high:,.0f} packets/s")
    return best, tried
