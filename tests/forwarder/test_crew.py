"""Worker processes that die, hang, or do not listen: what they do instead of work is made up."""

import mmap
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from forwarder import crew as crew_module
from forwarder.arrays import Longs
from forwarder.capture_ring import CaptureRing, memory_bytes, ring_of
from forwarder.counters import IDLE, CounterRow, Counters, Total, rows_bytes
from forwarder.crew import LOOKS_IN_VAIN, Crew, Duty
from forwarder.fib.layout import FibView
from forwarder.sandbox import Sandbox
from forwarder.tunnel import Tunnel
from forwarder.worker import closed_tunnel, empty_fib
from tests.netns.nodes import wait_for

Life = Callable[[Tunnel, FibView, CounterRow, CaptureRing, int, Sandbox, int], None]
WORKERS = 2


def works(tunnel: Tunnel, fib: FibView, counters: CounterRow, *_: object) -> None:
    """Turn after turn until it is asked to stop."""
    while not select.select([tunnel.wake_fd], [], [], 0.002)[0]:
        counters.row[Total.TURNS] += 1
        counters.row[Total.HEARTBEAT_NS] = time.monotonic_ns()


def holds_a_generation(tunnel: Tunnel, fib: FibView, counters: CounterRow, *_: object) -> None:
    """Within a turn, for ever."""
    counters.row[Total.GENERATION_SEEN] = 5
    while True:
        time.sleep(1)


def fails(*_: object) -> None:
    raise RuntimeError("out of luck")


class Watched:
    """A crew, and the counters that it watches."""

    def __init__(self) -> None:
        rows = mmap.mmap(-1, rows_bytes(WORKERS))
        captures = mmap.mmap(-1, memory_bytes(WORKERS))
        self.counters = Counters(rows, mmap.mmap(-1, WORKERS * 4 * 8), WORKERS)
        cpu = min(os.sched_getaffinity(0))
        self.crew = Crew([cpu] * WORKERS, Sandbox(None), 0)
        tunnels = [closed_tunnel()._replace(wake_fd=m.wake_fd) for m in self.crew.members]
        rings = [ring_of(captures, worker) for worker in range(WORKERS)]
        self.duty = Duty(tunnels, empty_fib(), self.counters, rings)

    @property
    def pids(self) -> list[int]:
        return [member.pid for member in self.crew.members]

    def is_replaced(self, pid: int) -> bool:
        self.crew.look_after()
        return pid not in self.pids and all(self.pids)


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.crew.stop()


@pytest.fixture
def live(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> Callable[[Life], Watched]:
    """Starts the crew on a life."""

    def start(life: Life) -> Watched:
        monkeypatch.setattr("forwarder.worker.run", life)
        watched.crew.start(watched.duty)
        return watched

    return start


def test_workers_stop_when_they_are_asked(
    live: Callable[[Life], Watched], caplog: pytest.LogCaptureFixture
) -> None:
    watched = live(works)
    pids = watched.pids
    assert len(set(pids)) == WORKERS
    watched.crew.stop()
    assert watched.pids == [0, 0]
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert caplog.records == []


def test_worker_that_does_not_listen_is_killed(
    live: Callable[[Life], Watched],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(crew_module, "STOP_WAIT_S", 0.05)
    live(holds_a_generation).crew.stop()
    assert [r.getMessage().split(": ")[-1] for r in caplog.records] == ["killed"] * WORKERS


def test_worker_that_dies_is_replaced_and_keeps_nobody_waiting(
    live: Callable[[Life], Watched], caplog: pytest.LogCaptureFixture
) -> None:
    watched = live(holds_a_generation)
    wait_for(lambda: not watched.counters.all_past(6), "a generation in use")
    first, second = watched.pids
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: watched.is_replaced(first), "the successor")
    assert watched.pids[1] == second
    assert [state["deaths"] for state in watched.crew.describe(watched.counters.rows)] == [1, 0]
    assert "worker 0" in caplog.text
    assert "killed by signal 9" in caplog.text


def test_worker_that_keeps_dying_is_replaced_less_and_less_often(
    live: Callable[[Life], Watched],
) -> None:
    watched = live(fails)
    member = watched.crew.members[0]
    delays = {member.deaths: member.backoff_s}

    def has_died_four_times() -> bool:
        watched.crew.look_after()
        delays[member.deaths] = member.backoff_s  # before the next replacement but one
        return member.deaths >= 4

    wait_for(has_died_four_times, "four deaths")
    assert delays == {0: 0.02, 1: 0.04, 2: 0.08, 3: 0.16, 4: 0.32}


def test_worker_that_hangs_is_replaced_and_counted(
    live: Callable[[Life], Watched],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(crew_module, "LOOK_S", 0.01)
    watched = live(works)
    hung = watched.pids[0]
    monkeypatch.setattr("forwarder.worker.run", works)
    os.kill(hung, signal.SIGSTOP)  # in the midst of whatever it does
    watched.counters.rows[0, Total.GENERATION_SEEN] = 5
    assert not watched.counters.all_past(6)
    wait_for(lambda: watched.is_replaced(hung), "the successor")
    assert watched.counters.all_past(6)
    assert not os.path.exists(f"/proc/{hung}")
    assert f"worker 0 (pid {hung}) hangs: killed" in caplog.text
    states = watched.crew.describe(watched.counters.rows)
    assert [(state["hangs"], state["deaths"]) for state in states] == [(1, 1), (0, 0)]


def has_reached(turns: Longs, wanted: Longs) -> bool:
    return bool((turns >= wanted).all())


def test_worker_that_moves_between_looks_does_not_hang(
    live: Callable[[Life], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "LOOK_S", 0.0)
    watched = live(works)
    pids = watched.pids
    turns = watched.counters.rows[:, Total.TURNS]
    for _ in range(2 * LOOKS_IN_VAIN):
        more = turns.copy() + 1
        wait_for(partial(has_reached, turns, more), "turns")
        watched.crew.look_after()
    assert watched.pids == pids


def test_pause_of_the_whole_machine_makes_nobody_hang(
    live: Callable[[Life], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it took: it is one look in vain."""
    watched = live(holds_a_generation)
    monkeypatch.setattr(crew_module, "LOOK_S", 0.0)
    for _ in range(LOOKS_IN_VAIN):
        watched.crew.look_after()
    assert all(watched.pids)
    assert [m.hangs for m in watched.crew.members] == [0, 0]


def test_crew_that_was_stopped_has_nothing_due_but_its_next_look(
    live: Callable[[Life], Watched],
) -> None:
    watched = live(works)
    watched.crew.stop()
    watched.crew.look_after()
    assert watched.pids == [0, 0]
    assert time.monotonic() < watched.crew.due_at <= time.monotonic() + crew_module.LOOK_S
    assert watched.counters.rows[0, Total.GENERATION_SEEN] == IDLE
