"""The worker processes: started, stopped, watched, replaced."""

import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from forwarder import logs, worker
from forwarder.capture_ring import CaptureRing
from forwarder.counters import IDLE, CounterRow, Counters, Total
from forwarder.fib.layout import FibView
from forwarder.sandbox import Sandbox
from forwarder.tunnel import Tunnel

log = logging.getLogger("loden.forwarder")

STOP_WAIT_S = 0.5
"""How long a worker may take to finish its turn before it is killed."""
RESPAWN_MIN_S, RESPAWN_MAX_S = 0.02, 5.0
SETTLED_S = 10.0
"""A worker that lived this long before it died is replaced without delay again."""
LOOK_S = 1.0
LOOKS_IN_VAIN = 6
"""A worker that has done nothing between so many looks hangs: an idle one renews its heartbeat
once a second.  Looks are counted, not seconds: after a pause of the whole machine nobody hangs."""


@dataclass
class Member:
    """One worker: its index and CPU stay, the process may change."""

    index: int
    cpu: int
    wake_fd: int
    """eventfd: readable asks the worker to stop."""
    pid: int = 0
    """0: there is no process now."""
    started_at: float = 0.0
    backoff_s: float = RESPAWN_MIN_S
    respawn_at: float | None = None
    deaths: int = 0
    hangs: int = 0
    """Of these deaths, those we caused because it had stopped moving."""
    progress: int = 0
    looks_in_vain: int = 0


@dataclass(frozen=True)
class Duty:
    """What the workers are started with: one tunnel end and ring each, the FIB, the counters."""

    tunnels: Sequence[Tunnel]
    fib: FibView
    counters: Counters
    rings: Sequence[CaptureRing]


class Crew:
    """One worker per CPU.  All methods are for the forwarder's only thread."""

    def __init__(self, cpus: Sequence[int], limits: Sandbox, busy_poll_ns: int) -> None:
        self.members = [
            Member(index, cpu, os.eventfd(0, os.EFD_CLOEXEC)) for index, cpu in enumerate(cpus)
        ]
        self._limits = limits
        self._busy_poll_ns = busy_poll_ns
        self._duty: Duty | None = None
        self._look_at = 0.0

    def start(self, duty: Duty) -> None:
        """Starts every worker on `duty`; those that ran before must have been stopped."""
        self._duty = duty
        for member in self.members:
            self._spawn(member)

    def _spawn(self, member: Member) -> None:
        duty = self._duty
        assert duty is not None
        counters = duty.counters.of_worker(member.index)
        counters.row[Total.GENERATION_SEEN] = IDLE
        counters.row[Total.HEARTBEAT_NS] = time.monotonic_ns()
        member.started_at, member.respawn_at = time.monotonic(), None
        member.looks_in_vain = 0
        member.pid = os.fork()
        if member.pid == 0:
            ring = duty.rings[member.index]
            self._live(member, duty.tunnels[member.index], duty.fib, counters, ring)

    def _live(
        self, member: Member, tunnel: Tunnel, fib: FibView, counters: CounterRow, ring: CaptureRing
    ) -> NoReturn:
        """In the child: works, and leaves without running anything of the parent's."""
        try:
            signal.set_wakeup_fd(-1)
            worker.run(tunnel, fib, counters, ring, member.cpu, self._limits, self._busy_poll_ns)
        except BaseException as error:
            place = logs.where(error.__traceback__)
            log.error("worker %d: %s: %s (%s)", member.index, type(error).__name__, error, place)
            os._exit(1)
        os._exit(0)

    def stop(self) -> None:
        """Lets each worker finish its turn; one that does not is killed."""
        running = [member for member in self.members if member.pid]
        for member in running:
            os.eventfd_write(member.wake_fd, 1)
        deadline = time.monotonic() + STOP_WAIT_S
        for member in running:
            while os.waitpid(member.pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    log.warning("worker %d (pid %d) hangs: killed", member.index, member.pid)
                    os.kill(member.pid, signal.SIGKILL)
                    os.waitpid(member.pid, 0)
                    break
                time.sleep(0.0005)
            os.eventfd_read(member.wake_fd)
        for member in self.members:
            member.pid, member.respawn_at = 0, None

    def look_after(self) -> None:
        """Ends workers that hang, and starts others for those that died.

        At once, or after a growing delay.  To be called now and then, and when a child has died.
        """
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            self._end_hung()
        for member in self.members:
            if member.pid:
                pid, status = os.waitpid(member.pid, os.WNOHANG)
                if pid:
                    self._note_death(member, status)
            if member.respawn_at is not None and member.respawn_at <= time.monotonic():
                self._spawn(member)

    def _end_hung(self) -> None:
        """SIGKILL ends a stopped process, too.  Its queue and sockets wait for the next one."""
        for member in self.members:
            if not member.pid or self._duty is None:
                continue
            row = self._duty.counters.rows[member.index]
            progress = int(row[Total.TURNS]) + int(row[Total.HEARTBEAT_NS])  # both only grow
            is_still = progress == member.progress
            member.progress = progress
            member.looks_in_vain = member.looks_in_vain + 1 if is_still else 0
            if member.looks_in_vain == LOOKS_IN_VAIN:
                log.error("worker %d (pid %d) hangs: killed", member.index, member.pid)
                member.hangs += 1
                os.kill(member.pid, signal.SIGKILL)

    def _note_death(self, member: Member, status: int) -> None:
        now = time.monotonic()
        if now - member.started_at > SETTLED_S:
            member.backoff_s = RESPAWN_MIN_S
        member.pid, member.respawn_at = 0, now + member.backoff_s
        member.deaths += 1
        member.backoff_s = min(2 * member.backoff_s, RESPAWN_MAX_S)
        code = os.waitstatus_to_exitcode(status)
        cause = _in_words(-code) if code < 0 else f"exit status {code}"
        log.error("worker %d on CPU %d died (%s), replacing it", member.index, member.cpu, cause)
        if self._duty is not None:  # it reads nothing any more: do not make the writer wait
            self._duty.counters.rows[member.index, Total.GENERATION_SEEN] = IDLE

    @property
    def due_at(self) -> float:
        """When `look_after` has something to do, by time.monotonic()."""
        due = [member.respawn_at for member in self.members if member.respawn_at is not None]
        return min([self._look_at, *due])

    def describe(self, rows: Any) -> list[dict[str, Any]]:
        """The state of each worker for `stats`; `rows` as in Counters."""
        now = time.monotonic_ns()
        return [
            {
                "cpu": member.cpu,
                "pid": member.pid,
                "alive": member.pid != 0,
                "deaths": member.deaths,
                "hangs": member.hangs,
                "heartbeat_age_s": (now - int(rows[member.index, Total.HEARTBEAT_NS])) / 1e9,
                "idle": int(rows[member.index, Total.GENERATION_SEEN]) == IDLE,
            }
            for member in self.members
        ]


def _in_words(number: int) -> str:
    if number == signal.SIGSYS:
        return "killed for a system call that its sandbox does not allow"
    return f"killed by signal {number}, {signal.strsignal(number)}"
