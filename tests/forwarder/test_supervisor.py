"""The forwarder's answers before it can forward; what it does then is tested in tests/netns."""

import os
from dataclasses import asdict

import pytest

from forwarder import shm
from forwarder.api import ForwarderError
from forwarder.config import ForwarderOptions
from forwarder.counters import Counters
from forwarder.fib.layout import FibMemory
from forwarder.fib.routes import Prefix
from forwarder.fib.writer import FibWriter
from forwarder.rpc import RpcError
from forwarder.supervisor import Supervisor
from tests.forwarder.fibs import OWN_MAC, SMALL, vtep


@pytest.fixture
def supervisor() -> Supervisor:
    cpu = min(os.sched_getaffinity(0))
    return Supervisor(ForwarderOptions(run_dir="unused", cpus=(cpu,), uso=False))


def test_unconfigured_forwarder_says_so(supervisor: Supervisor) -> None:
    hello, _ = supervisor.hello()
    assert (hello["config"], hello["running"], hello["generation"]) == (None, False, 0)
    assert supervisor.list_routes(0) == ({"routes": [], "next": None}, [])
    with pytest.raises(RpcError, match="routes: not configured yet"):
        supervisor.write_routes([["10.0.0.0/24", {"kind": "local"}]], [])
    with pytest.raises(RpcError, match="activate: there is no new FIB"):
        supervisor.activate()


def test_fib_can_be_filled_in_steps_before_there_are_workers(supervisor: Supervisor) -> None:
    """IPv6 routes have two copies: the second change waits until no worker uses the other one."""
    capacity = asdict(SMALL)
    reply, fds = supervisor.new_fib(capacity)
    memory = FibMemory(shm.map_writable(fds[0]), SMALL)
    counters = Counters(shm.map_readonly(fds[1]), shm.map_readonly(fds[2]), reply["workers"])
    writer = FibWriter(memory, OWN_MAC, counters.all_past, shm.order_writes)
    for number in range(3):
        assert writer.apply({Prefix.parse(f"2001:db8:{number}::/48"): vtep(number)}) == 1


def test_stats_of_an_idle_forwarder(supervisor: Supervisor) -> None:
    stats, _ = supervisor.stats()
    assert stats["offloads"]["tun_uso"] == "switched off"
    assert [worker["alive"] for worker in stats["per_worker"]] == [False]
    assert [worker["receive_drops"] for worker in stats["per_worker"]] == [0]
    assert stats["control_gone_s"] >= 0
    assert supervisor.view_fib() == ({"capacity": None}, [])


def test_errors_tell_whether_to_try_again() -> None:
    assert not ForwarderError("no").retryable
