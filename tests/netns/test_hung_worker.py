"""A worker that was stopped in the midst of its work: somebody else goes on with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from forwarder.fib.routes import Prefix
from perf.traffic import ping
from tests.netns.forwarders import Forwarder, pair_of_forwarders
from tests.netns.nodes import wait_for

pytestmark = pytest.mark.netns


def workers_of(end: Forwarder) -> list[dict[str, Any]]:
    workers: list[dict[str, Any]] = end.client.stats()["per_worker"]
    return workers


def stop_in_a_turn(end: Forwarder) -> int:
    """Stops a worker that holds indices of the FIB; returns its place."""

    def stopped() -> int | None:
        for place, worker in enumerate(workers_of(end)):
            os.kill(worker["pid"], signal.SIGSTOP)
            if not workers_of(end)[place]["idle"]:
                return place + 1
            os.kill(worker["pid"], signal.SIGCONT)
        return None

    return wait_for(stopped, "a worker stopped in a turn", 30) - 1


def test_stopped_worker_is_replaced_and_routes_can_be_changed(tmp_path: Path) -> None:
    with pair_of_forwarders(tmp_path, module="tests.netns.impatient") as pair:
        near, far = pair.ends
        flood = near.pod.popen(["ping", "-f", "-q", str(pair.address_of(1, 4))])
        place = stop_in_a_turn(near)
        flood.kill()
        flood.wait()
        # IPv6 routes have two copies: the third change must wait until nobody reads the first.
        hop = far.as_next_hop()
        for number in range(3):
            assert near.client.set_routes([(Prefix.parse(f"fd07:9:{number}::/48"), hop)]) == 1
        wait_for(lambda: workers_of(near)[place]["alive"], "the worker's successor")
        worker = workers_of(near)[place]
        assert (worker["hangs"], worker["deaths"]) == (1, 1)
        assert "hangs: killed" in near.log()
        for version in (4, 6):
            assert ping(near.pod, pair.address_of(1, version)).received == 3
